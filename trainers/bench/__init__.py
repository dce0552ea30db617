"""Measurement of training inside a rank: the same steps by our `DataParallel` and by others."""
