#pragma once

namespace pvt_kernels::cpu {

// Operations a second, multiplications and additions, of a loop that does nothing else on this many
// threads, in the arithmetic that the code path multiplies in: fp32, or bf16 where it has products
// of its own. What no kernel can be faster than.
using PeakRate = double(int threads);

}  // namespace pvt_kernels::cpu
