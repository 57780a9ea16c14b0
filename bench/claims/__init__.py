"""Do the methods do what their papers say, and is the exported winner better?"""
