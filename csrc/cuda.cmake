# Finds nvcc, chooses the architectures and enables the CUDA language. Sets:
#   cuda_missing   why the build has no CUDA; empty when it has
#   cuda_version   version of nvcc
#   cuda_archs     the code that the build holds: sm_75;...;compute_80
#   cuda_families  the families of architectures that it is for: 75;80
#   cuda_flags     what nvcc compiles code for all of them with
#   cuda_flags_75  for one family
#   cuda_treat_as_arch  of whose family alone the build is, for every GPU; empty as a rule

# Without a GPU to go by, one of each generation: machine code runs on what is newer within its
# generation (8.6 and 8.9 run sm_80), and the PTX on all that is newer.
set(default_archs 70 75 80 90 120)
# The first architecture of each family, for whose features the kernels are written: every family
# is compiled to PTX once, from which machine code is made for each of its architectures.
set(families 70 75 80)
set(oldest_arch 70)
# What PVT_KERNELS_TREAT_AS_ARCH may be, the environment's or CMake's variable: then every GPU runs
# the kernels for that one, which so can be checked where there is none.
set(treat_as_archs 70 75)
set(without_cuda "set PVT_KERNELS_CUDA_ARCHS=none to build without CUDA")

set(cuda_missing "")
set(cuda_version "")
set(cuda_archs "")
set(cuda_families "")
set(cuda_flags "")

if(DEFINED PVT_KERNELS_TREAT_AS_ARCH)
  set(cuda_treat_as_arch "${PVT_KERNELS_TREAT_AS_ARCH}")
else()
  set(cuda_treat_as_arch "$ENV{PVT_KERNELS_TREAT_AS_ARCH}")
endif()
if(NOT cuda_treat_as_arch STREQUAL "" AND NOT cuda_treat_as_arch IN_LIST treat_as_archs)
  list(JOIN treat_as_archs " or " accepted_archs)
  message(FATAL_ERROR "PVT_KERNELS_TREAT_AS_ARCH must be ${accepted_archs}, or nothing, "
    "got ${cuda_treat_as_arch}")
endif()

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
  if(cuda_treat_as_arch)
    message(FATAL_ERROR "PVT_KERNELS_TREAT_AS_ARCH=${cuda_treat_as_arch} asks for CUDA kernels, "
      "and the build has none: ${cuda_missing}")
  endif()
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
else()
  # The GPUs in the machine. Asked of the driver's tool, which needs no context on any of them.
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_QUIET)
  if(NOT failed)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]+" capabilities "${output}")
    list(REMOVE_DUPLICATES capabilities)
    foreach(capability IN LISTS capabilities)
      string(REPLACE "." "" arch ${capability})
      if(arch IN_LIST accepted_archs)
        list(APPEND archs ${arch})
      else()
        message(NOTICE "pvt_kernels: this machine has a GPU of compute capability ${capability}, "
          "for which ${nvcc} makes no machine code")
      endif()
    endforeach()
  endif()
  if(archs STREQUAL "")
    foreach(arch IN LISTS default_archs)
      if(arch IN_LIST accepted_archs)
        list(APPEND archs ${arch})
      endif()
    endforeach()
  endif()
endif()
list(REMOVE_DUPLICATES archs)
list(SORT archs COMPARE NATURAL)

# To each family its architectures, and to the newest one also the PTX.
set(used_families "")
foreach(arch IN LISTS archs)
  foreach(candidate IN LISTS families)
    if(arch GREATER_EQUAL candidate)
      set(family ${candidate})
    endif()
  endforeach()
  if(cuda_treat_as_arch AND arch LESS cuda_treat_as_arch)
    message(FATAL_ERROR "PVT_KERNELS_TREAT_AS_ARCH=${cuda_treat_as_arch} is for newer GPUs than "
      "${arch}, which is among the architectures of this build: leave it out of "
      "PVT_KERNELS_CUDA_ARCHS")
  endif()
  list(APPEND used_families ${family})
  list(APPEND cuda_archs sm_${arch})
  list(APPEND codes_${family} sm_${arch})
endforeach()
list(REMOVE_DUPLICATES used_families)
list(APPEND cuda_archs compute_${family})
list(APPEND codes_${family} compute_${family})
foreach(family IN LISTS used_families)
  list(JOIN codes_${family} "," codes)
  set(flag "--generate-code=arch=compute_${family},code=[${codes}]")
  list(APPEND cuda_flags ${flag})
  if(cuda_treat_as_arch)
    set(family ${cuda_treat_as_arch})
  endif()
  list(APPEND cuda_families ${family})
  list(APPEND cuda_flags_${family} ${flag})
endforeach()
list(REMOVE_DUPLICATES cuda_families)
# by cuda_flags, since CMake would compile to PTX once for each architecture
set(CMAKE_CUDA_ARCHITECTURES OFF)

# In a folder configured before, CMake would go on with the nvcc that it found then.
file(REMOVE "${CMAKE_PLATFORM_INFO_DIR}/CMakeCUDACompiler.cmake")
set(CMAKE_CUDA_COMPILER "${nvcc}")
enable_language(CUDA)
set(cuda_version "${CMAKE_CUDA_COMPILER_VERSION}")
list(JOIN cuda_archs " " archs)
if(cuda_treat_as_arch)
  string(APPEND archs ", all with the kernels of ${cuda_treat_as_arch}")
endif()
message(NOTICE "pvt_kernels: building with CUDA ${cuda_version} for ${archs}")
