#include "cuda/driver.h"

#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "driver.h"

namespace py = pybind11;
using namespace py::literals;
using namespace pvt_kernels::driver;

namespace {

// ("slot", index, offset), or the type of a number and the number.
Argument argument_of(const py::tuple& argument) {
  const auto type = argument[0].cast<std::string>();
  if (type == "slot")
    return Slot{argument[1].cast<std::size_t>(), argument[2].cast<std::int64_t>()};
  if (type == "int32") return Int32{argument[1].cast<std::int32_t>()};
  if (type == "int64") return argument[1].cast<std::int64_t>();
  if (type == "float32") return argument[1].cast<float>();
  throw py::value_error("an argument is a slot, int32, int64 or float32, got " + type);
}

}  // namespace

void bind_driver(py::module_ m) {
  py::class_<Kernel>(m, "Kernel", "A kernel in the primary context of a device.")
      .def(py::init([](int device, const py::bytes& image, const std::string& name,
                       unsigned threads, unsigned shared_bytes) {
             return Kernel(device, image, name, threads, shared_bytes);
           }),
           "device"_a, "image"_a, "name"_a, "threads"_a, "shared_bytes"_a);

  using Call = std::tuple<Kernel, std::int64_t, std::vector<py::tuple>>;
  py::class_<Plan>(m, "Plan", "Launches that follow each other on a stream.")
      .def(py::init([](const std::vector<Call>& calls, std::size_t slots) {
             std::vector<Launch> launches;
             for (const auto& [kernel, blocks, arguments] : calls) {
               launches.push_back({kernel, blocks, {}});
               for (const py::tuple& argument : arguments)
                 launches.back().arguments.push_back(argument_of(argument));
             }
             return Plan(launches, slots);
           }),
           "launches"_a, "slots"_a)
      .def("__len__", &Plan::size)
      .def(
          "launch",
          [](const Plan& plan, std::uintptr_t stream,
             const std::vector<std::uintptr_t>& addresses) {
            plan.launch(reinterpret_cast<void*>(stream), addresses);
          },
          "stream"_a, "addresses"_a, py::call_guard<py::gil_scoped_release>());
}
