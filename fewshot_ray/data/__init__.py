"""Reading images, choosing the few shots and what is held out, inspecting a data set. Reads only; never changes a user's file."""
