#include "cuda/blocks.h"

#include <stdexcept>

#include "cuda/attention_config.cuh"

namespace pvt_kernels::cuda {
namespace {

template <class Atom, int D>
std::vector<KernelBlocks> attention_blocks(const pvtk_attention& call, int multiprocessors) {
  using Forward = typename Config<Atom, D>::Forward;
  using DkDv = typename Config<Atom, D>::DkDv;
  const std::int64_t units = call.batch * call.heads;
  const KeyTiling tiling = {DkDv::kRows, DkDv::kStep, DkDv::kBlocks, DkDv::kWithDq};
  const std::int64_t splits = dk_dv_split(call, tiling, multiprocessors).count;
  const std::int64_t key_blocks = tiles_of(call.keys, DkDv::kRows) * units * splits;
  std::vector<KernelBlocks> found = {
      {"attention_forward", tiles_of(call.queries, Forward::kRows) * units, Forward::kBlocks}};
  if constexpr (DkDv::kWithDq) {
    found.push_back({"attention_dq_dk_dv", key_blocks, DkDv::kBlocks});
  } else {
    using Dq = typename Config<Atom, D>::Dq;
    found.push_back({"attention_dq", tiles_of(call.queries, Dq::kRows) * units, Dq::kBlocks});
    found.push_back({"attention_dk_dv", key_blocks, DkDv::kBlocks});
  }
  return found;
}

template <class Atom>
std::vector<KernelBlocks> attention_blocks(const pvtk_attention& call, int multiprocessors) {
  if (call.head_dim <= 32) return attention_blocks<Atom, 32>(call, multiprocessors);
  if (call.head_dim <= 64) return attention_blocks<Atom, 64>(call, multiprocessors);
  return attention_blocks<Atom, 128>(call, multiprocessors);
}

}  // namespace

std::vector<KernelBlocks> blocks_on_a_v100(const pvtk_attention& attention,
                                           const pvtk_spatial_reduction* reduction,
                                           int multiprocessors) {
  if (attention.dtype == PVTK_BFLOAT16)
    throw std::invalid_argument("dtype must be float16 or float32 on a V100, got bfloat16");
  std::vector<KernelBlocks> found = attention.dtype == PVTK_FLOAT16
                                        ? attention_blocks<Sm70>(attention, multiprocessors)
                                        : attention_blocks<Simt70>(attention, multiprocessors);
  if (reduction != nullptr) {
    const std::int64_t R = reduction->sr_ratio, C = reduction->channels, depth = R * R * C;
    const std::int64_t patches =
        reduction->batch * (reduction->height / R) * (reduction->width / R);
    const auto splits = [&](std::int64_t rows, std::int64_t of) {
      return product_split(rows, C, of, reduction->dtype, multiprocessors).count;
    };
    const auto add = [&](const char* kernel, std::int64_t blocks) {
      found.push_back({kernel, blocks, kProductBlocks});
    };
    add("spatial_reduction_product", product_tiles(patches, C) * splits(patches, depth));
    add("spatial_reduction_dx", product_tiles(patches, depth));
    add("spatial_reduction_dweight", product_tiles(depth, C) * splits(depth, patches));
  }
  return found;
}

}  // namespace pvt_kernels::cuda
