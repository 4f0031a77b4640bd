"""The ops: what they take and return, checked, as operators of PyTorch with their autograd."""
