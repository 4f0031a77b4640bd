# The kernels and their launchers, which need the CUDA runtime and nothing else.
set(cuda_sources
  runtime.cu
  attention_forward.cu
  attention_backward.cu
  spatial_reduction_forward.cu
  spatial_reduction_backward.cu)
list(TRANSFORM cuda_sources PREPEND "${CMAKE_CURRENT_LIST_DIR}/")
