"""Networks and what is trained of them."""
