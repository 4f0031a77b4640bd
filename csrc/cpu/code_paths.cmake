# The CPU kernels: the same sources once for each code path, with that path's flags.

find_package(OpenMP COMPONENTS CXX)
if(NOT OpenMP_CXX_FOUND)
  message(NOTICE "pvt_kernels: the compiler has no OpenMP: the CPU kernels run on one thread")
endif()

target_sources(pvt_kernels PRIVATE csrc/cpu/dispatch.cpp)

function(add_code_path path)
  add_library(cpu_${path} OBJECT
    csrc/cpu/attention_forward.cpp
    csrc/cpu/attention_backward.cpp
    csrc/cpu/spatial_reduction_forward.cpp
    csrc/cpu/spatial_reduction_backward.cpp)
  target_include_directories(cpu_${path} PRIVATE csrc)
  target_compile_definitions(cpu_${path} PRIVATE PVT_KERNELS_CODE_PATH=${path})
  # fused multiply-adds, which -std=c++17 alone would not form
  target_compile_options(cpu_${path} PRIVATE -O3 -ffp-contract=fast -Wall -Wextra ${ARGN})
  if(OpenMP_CXX_FOUND)
    target_link_libraries(cpu_${path} PRIVATE OpenMP::OpenMP_CXX)
    target_link_libraries(pvt_kernels PUBLIC OpenMP::OpenMP_CXX)
  endif()
  target_sources(pvt_kernels PRIVATE $<TARGET_OBJECTS:cpu_${path}>)
endfunction()

add_code_path(portable)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(avx2 -mavx2 -mfma)
  add_code_path(avx2 ${avx2})
  add_code_path(avx512 ${avx2} -mavx512f -mavx512dq -mavx512bw -mavx512vl
    -mprefer-vector-width=512)
endif()
