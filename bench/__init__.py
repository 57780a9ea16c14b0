"""The project's own measurements. Each script is run from anywhere as `python PATH`, and puts the repository's root in front of `sys.path`.

claims   do the methods do what their papers say, and is the exported winner better?
faults   what breaks: under kills and malformed input, in long sweeps, between revisions and numbers of workers
costs    seconds and bytes: of a step, of checkpoints, of Ray, of more workers
data     makes the pictures and the network that the package and the benchmarks use
gpu.py   the parts of `costs` that a GPU changes, in 12 minutes

What a script found is in results/, under the script's own name.
"""
