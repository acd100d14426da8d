"""Which paths lead to which agents at this moment, found out by trying them."""
