"""What breaks: under kills, in long sweeps, between revisions and numbers of workers."""
