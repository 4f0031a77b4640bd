# add_cuda_kernels(target): adds the kernels and the C functions that launch them, which need the
# CUDA runtime and nothing else. The kernels are compiled once for each of cuda_families, as the
# target cuda_FAMILY, so that none is compiled where it never runs; another target takes the same.
set(cuda_folder "${CMAKE_CURRENT_LIST_DIR}")
set(cuda_entry_sources
  "${cuda_folder}/runtime.cu"
  "${cuda_folder}/attention.cu"
  "${cuda_folder}/feed_forward.cu"
  "${cuda_folder}/spatial_reduction.cu")
# what takes the longest to compile first, so that no core waits for it at the end
set(cuda_kernel_sources
  "${cuda_folder}/attention_backward.cu"
  "${cuda_folder}/attention_forward.cu"
  "${cuda_folder}/feed_forward_kernels.cu"
  "${cuda_folder}/spatial_reduction_backward.cu"
  "${cuda_folder}/spatial_reduction_forward.cu")

function(add_cuda_kernels target)
  target_sources(${target} PRIVATE ${cuda_entry_sources})
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${cuda_flags}>")
  if(cuda_treat_as_arch)
    target_compile_definitions(${target} PRIVATE
      PVT_KERNELS_TREAT_AS_ARCH=${cuda_treat_as_arch})
  endif()
  foreach(family IN LISTS cuda_families)
    target_compile_definitions(${target} PRIVATE PVT_KERNELS_CUDA_FAMILY_${family})
    if(NOT TARGET cuda_${family})
      add_library(cuda_${family} OBJECT ${cuda_kernel_sources})
      target_compile_definitions(cuda_${family} PRIVATE PVT_KERNELS_CUDA_FAMILY=${family})
      target_compile_options(cuda_${family} PRIVATE ${cuda_flags_${family}})
      target_include_directories(cuda_${family} PRIVATE "${cuda_folder}/..")
    endif()
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:cuda_${family}>)
  endforeach()
endfunction()
