"""Networks, and which of their parameters are trained."""
