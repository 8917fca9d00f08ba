"""Whether evolution pays: held-out accuracy of a tournament and of other searches on the same number of pairs."""
