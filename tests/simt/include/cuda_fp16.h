// Stands in for CUDA's header: half is the compiler's own type.
#pragma once

using half = _Float16;

inline float __half2float(half x) { return x; }
inline half __float2half_rn(float x) { return static_cast<half>(x); }

struct half2 {
  half x, y;
};
inline half2 __floats2half2_rn(float x, float y) {
  return {static_cast<half>(x), static_cast<half>(y)};
}
inline half __low2half(half2 x) { return x.x; }
inline half __high2half(half2 x) { return x.y; }
