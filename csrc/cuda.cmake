# Finds nvcc, chooses the architectures and enables the CUDA language. Sets:
#   cuda_missing  why the build has no CUDA; empty when it has
#   cuda_version  version of nvcc
#   cuda_archs    the code that the build holds: sm_75;...;compute_120

set(default_archs 70 75 80 86 89 90 100 120)
set(oldest_arch 70)
set(without_cuda "set PVT_KERNELS_CUDA_ARCHS=none to build without CUDA")

set(cuda_missing "")
set(cuda_version "")
set(cuda_archs "")

string(REGEX MATCHALL "[^;, ]+" requested_archs "$ENV{PVT_KERNELS_CUDA_ARCHS}")

if(requested_archs STREQUAL "none")
  set(cuda_missing "PVT_KERNELS_CUDA_ARCHS=none")
else()
  # PATH before the toolkit folders, as for any other compiler. Not cached: a later configuration
  # sees an nvcc that has come or gone.
  find_program(nvcc nvcc NO_CACHE NO_DEFAULT_PATH
    PATHS ENV PATH ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
  if(NOT nvcc)
    set(cuda_missing "no nvcc on PATH, in CUDA_HOME or CUDA_PATH, or in /usr/local/cuda")
    if(NOT requested_archs STREQUAL "")
      message(FATAL_ERROR "PVT_KERNELS_CUDA_ARCHS=$ENV{PVT_KERNELS_CUDA_ARCHS} asks for CUDA, but "
        "there is ${cuda_missing}. Install the CUDA toolkit, or ${without_cuda}.")
    endif()
  endif()
endif()

if(cuda_missing)
  message(NOTICE "pvt_kernels: building without CUDA: ${cuda_missing}")
  return()
endif()

# A whole program, so that a missing runtime library or an unsupported host compiler shows up here,
# where the message can name the way out.
set(host_compiler "")
if(DEFINED ENV{CUDAHOSTCXX})
  set(host_compiler -ccbin "$ENV{CUDAHOSTCXX}")
endif()
set(probe "${PROJECT_BINARY_DIR}/nvcc_probe")
file(WRITE "${probe}.cu" "__global__ void probe() {}\nint main() { probe<<<1, 1>>>(); }\n")
execute_process(COMMAND "${nvcc}" ${host_compiler} "${probe}.cu" -o "${probe}"
  RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(failed)
  message(FATAL_ERROR "${nvcc} was found but cannot compile:\n${output}\n"
    "Repair the CUDA toolkit, or ${without_cuda}.")
endif()

execute_process(COMMAND "${nvcc}" --list-gpu-arch OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[0-9]+" supported_archs "${output}")
list(SORT supported_archs COMPARE NATURAL)
set(accepted_archs "")
foreach(arch IN LISTS supported_archs)
  if(arch GREATER_EQUAL oldest_arch)
    list(APPEND accepted_archs ${arch})
  endif()
endforeach()

set(archs "")
if(NOT requested_archs STREQUAL "")
  foreach(arch IN LISTS requested_archs)
    if(NOT arch IN_LIST accepted_archs)
      list(JOIN accepted_archs " " accepted_archs)
      message(FATAL_ERROR
        "PVT_KERNELS_CUDA_ARCHS=$ENV{PVT_KERNELS_CUDA_ARCHS} names ${arch}, which is not an "
        "architecture for ${nvcc}. Accepted: none, or any of ${accepted_archs}.")
    endif()
  endforeach()
  set(archs ${requested_archs})
  list(REMOVE_DUPLICATES archs)
  list(SORT archs COMPARE NATURAL)
else()
  foreach(arch IN LISTS default_archs)
    if(arch IN_LIST accepted_archs)
      list(APPEND archs ${arch})
    endif()
  endforeach()
endif()

# Machine code for each architecture, and PTX of the newest for GPUs that come after it.
list(GET archs -1 newest_arch)
list(TRANSFORM archs APPEND "-real" OUTPUT_VARIABLE CMAKE_CUDA_ARCHITECTURES)
list(APPEND CMAKE_CUDA_ARCHITECTURES ${newest_arch}-virtual)
list(TRANSFORM archs PREPEND "sm_" OUTPUT_VARIABLE cuda_archs)
list(APPEND cuda_archs compute_${newest_arch})

# In a folder configured before, CMake would go on with the nvcc that it found then.
file(REMOVE "${CMAKE_PLATFORM_INFO_DIR}/CMakeCUDACompiler.cmake")
set(CMAKE_CUDA_COMPILER "${nvcc}")
enable_language(CUDA)
set(cuda_version "${CMAKE_CUDA_COMPILER_VERSION}")
list(JOIN cuda_archs " " archs)
message(NOTICE "pvt_kernels: building with CUDA ${cuda_version} for ${archs}")
