"""The spatial reduction: a convolution with kernel = stride, bias and LayerNorm, on tokens."""
