"""Other libraries' models on this package's kernels: patch(model) and unpatch(model)."""

from pvt_kernels.integrations.patching import patch, unpatch
from pvt_kernels.integrations.report import Report, Row

__all__ = ["Report", "Row", "patch", "unpatch"]
