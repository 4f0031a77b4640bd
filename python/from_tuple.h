// The kernels' small structs are tuples in Python, which are made faster than objects of classes.
#pragma once

#include <pybind11/pybind11.h>

#include <tuple>
#include <utility>

namespace pybind11::detail {

// Of the function that makes the struct of a tuple's values.
template <auto make>
struct from_tuple;

template <class Struct, class... Fields, Struct (*make)(Fields...)>
struct from_tuple<make> {
  PYBIND11_TYPE_CASTER(Struct, make_caster<std::tuple<Fields...>>::name);

  bool load(handle source, bool convert) {
    make_caster<std::tuple<Fields...>> fields;
    if (!fields.load(source, convert)) return false;
    value = std::apply(make, cast_op<std::tuple<Fields...>>(std::move(fields)));
    return true;
  }
};

}  // namespace pybind11::detail
