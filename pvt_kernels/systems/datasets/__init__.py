"""The standard layouts of ImageNet, COCO and ADE20K, and generated data in the same three."""
