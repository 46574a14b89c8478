"""The command `kleiber judge`: blind comparison of the answers of two models, on a page of this machine."""
