// OpenMP where the compiler has it; otherwise every parallel region is one thread.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#else
namespace pvt_kernels::cpu {
inline int omp_get_thread_num() { return 0; }
inline int omp_get_num_threads() { return 1; }
}  // namespace pvt_kernels::cpu
#endif
