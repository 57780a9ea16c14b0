"""Does the search find the best configuration, in how many steps, and what does it cost besides?"""
