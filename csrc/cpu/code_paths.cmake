# Adds the CPU kernels to the target pvt_kernels: the same sources once for each code path, with
# that path's flags.

find_package(OpenMP COMPONENTS CXX)
if(NOT OpenMP_CXX_FOUND)
  message(NOTICE "pvt_kernels: the compiler has no OpenMP: the CPU kernels run on one thread")
endif()

set(cpu_folder "${CMAKE_CURRENT_LIST_DIR}")
target_sources(pvt_kernels PRIVATE "${cpu_folder}/features.cpp" "${cpu_folder}/dispatch.cpp")

function(add_code_path path)
  add_library(cpu_${path} OBJECT
    "${cpu_folder}/code_path.cpp"
    "${cpu_folder}/attention_forward.cpp"
    "${cpu_folder}/attention_backward.cpp"
    "${cpu_folder}/multi_head_attention_forward.cpp"
    "${cpu_folder}/multi_head_attention_backward.cpp"
    "${cpu_folder}/spatial_reduction_forward.cpp"
    "${cpu_folder}/spatial_reduction_backward.cpp"
    "${cpu_folder}/feed_forward_forward.cpp"
    "${cpu_folder}/feed_forward_backward.cpp"
    "${cpu_folder}/peak.cpp")
  target_include_directories(cpu_${path} PRIVATE "${cpu_folder}/..")
  target_compile_definitions(cpu_${path} PRIVATE PVT_KERNELS_CODE_PATH=${path})
  # fused multiply-adds, which -std=c++17 alone would not form
  target_compile_options(cpu_${path} PRIVATE -O3 -ffp-contract=fast -Wall -Wextra ${ARGN})
  if(OpenMP_CXX_FOUND)
    target_link_libraries(cpu_${path} PRIVATE OpenMP::OpenMP_CXX)
    target_link_libraries(pvt_kernels PUBLIC OpenMP::OpenMP_CXX)
  endif()
  target_sources(pvt_kernels PRIVATE $<TARGET_OBJECTS:cpu_${path}>)
endfunction()

# for tests: AMX's instructions in plain C++, for every machine
option(PVT_KERNELS_AMX_STAND_IN "Compute AMX's tile instructions by a stand-in" OFF)
option(PVT_KERNELS_PORTABLE_ALONE "Leave out the code paths for instructions of x86" OFF)

add_code_path(portable)
if(PVT_KERNELS_PORTABLE_ALONE)
  target_compile_definitions(pvt_kernels PRIVATE PVT_KERNELS_PORTABLE_ALONE)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(avx2 -mavx2 -mfma)
  add_code_path(avx2 ${avx2})
  set(avx512 ${avx2} -mavx512f -mavx512dq -mavx512bw -mavx512vl -mprefer-vector-width=512)
  add_code_path(avx512 ${avx512})
  # for all but bf16 it would be the same code again, which takes a quarter of the time to compile
  set(avx512_bf16 ${avx512} -mavx512bf16 -DPVT_KERNELS_BF16_ALONE)
  add_code_path(avx512_bf16 ${avx512_bf16})
  if(NOT PVT_KERNELS_AMX_STAND_IN)
    add_code_path(amx_bf16 ${avx512_bf16} -mamx-tile -mamx-bf16 -DPVT_KERNELS_AMX)
  endif()
endif()

if(PVT_KERNELS_AMX_STAND_IN)
  # more optimization of what imitates the tiles takes three times as long to compile
  add_code_path(amx_bf16 -O2 -DPVT_KERNELS_BF16_ALONE -DPVT_KERNELS_AMX -Wno-psabi)
  target_compile_definitions(cpu_amx_bf16 PRIVATE PVT_KERNELS_AMX_STAND_IN)
  target_include_directories(cpu_amx_bf16 PRIVATE "${cpu_folder}/../../tests/csrc")
  target_compile_definitions(pvt_kernels PRIVATE PVT_KERNELS_AMX_STAND_IN)
endif()
