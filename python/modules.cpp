#include "modules.h"

#include <cstdlib>

namespace py = pybind11;
using namespace py::literals;

namespace {

// A dict's value, borrowed; nullptr where there is none.
PyObject* get(PyObject* dict, PyObject* name) {
  PyObject* value = PyDict_GetItemWithError(dict, name);
  if (!value && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

// The names by which torch.nn.Module keeps what is asked here.
struct Names {
  PyObject* forward = PyUnicode_InternFromString("forward");
  PyObject* parameters = PyUnicode_InternFromString("_parameters");
  PyObject* weight = PyUnicode_InternFromString("weight");
  PyObject* bias = PyUnicode_InternFromString("bias");
  PyObject* hooks[4] = {
      PyUnicode_InternFromString("_forward_pre_hooks"),
      PyUnicode_InternFromString("_forward_hooks"),
      PyUnicode_InternFromString("_backward_pre_hooks"),
      PyUnicode_InternFromString("_backward_hooks"),
  };
};

const Names& names() {
  static const Names interned;
  return interned;
}

// Whether the module's kind computes what it did when the package was imported.
bool has_own_forward(PyObject* module, PyObject* forwards) {
  auto* kind = reinterpret_cast<PyObject*>(Py_TYPE(module));
  PyObject* expected = get(forwards, kind);
  if (!expected) return false;
  const auto forward = py::reinterpret_steal<py::object>(PyObject_GetAttr(kind, names().forward));
  if (!forward) throw py::error_already_set();
  return forward.ptr() == expected;
}

bool is_listened_to(PyObject* attributes) {
  for (PyObject* name : names().hooks) {
    PyObject* hooks = get(attributes, name);
    if (!hooks || PyObject_IsTrue(hooks) != 0) return true;
  }
  return get(attributes, names().forward) != nullptr;
}

py::object tensors_of(const py::object& x, const py::tuple& modules, const py::dict& forwards) {
  py::tuple parameters(2 * modules.size());
  py::list present;
  present.append(x);
  unsigned absent = 0;
  for (std::size_t i = 0; i < modules.size(); ++i) {
    PyObject* module = PyTuple_GET_ITEM(modules.ptr(), i);
    PyObject* own = nullptr;
    if (module != Py_None) {
      if (!has_own_forward(module, forwards.ptr())) return py::none();
      const auto attributes =
          py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module, nullptr));
      if (!attributes) throw py::error_already_set();
      if (is_listened_to(attributes.ptr())) return py::none();
      own = get(attributes.ptr(), names().parameters);
      if (!own || !PyDict_Check(own)) return py::none();
    }
    std::size_t place = 2 * i;
    for (PyObject* name : {names().weight, names().bias}) {
      PyObject* tensor = own ? get(own, name) : Py_None;
      if (!tensor) return py::none();
      if (tensor == Py_None)
        absent |= 1u << place;
      else
        present.append(py::handle(tensor));
      PyTuple_SET_ITEM(parameters.ptr(), place++, py::handle(tensor).inc_ref().ptr());
    }
  }
  return py::make_tuple(parameters, present, absent);
}

bool are_listened_to(const py::tuple& modules) {
  for (const py::handle module : modules) {
    if (module.is_none()) continue;
    const auto attributes =
        py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module.ptr(), nullptr));
    if (!attributes) throw py::error_already_set();
    if (is_listened_to(attributes.ptr())) return true;
  }
  return false;
}

py::tuple environment(const py::tuple& variables) {
  py::tuple values(variables.size());
  for (std::size_t i = 0; i < variables.size(); ++i) {
    const char* value = std::getenv(PyUnicode_AsUTF8(PyTuple_GET_ITEM(variables.ptr(), i)));
    values[i] = value ? py::object(py::bytes(value)) : py::object(py::none());
  }
  return values;
}

}  // namespace

void bind_modules(py::module_ m) {
  m.def("tensors_of", &tensors_of, "x"_a, "modules"_a, "forwards"_a);
  m.def("are_listened_to", &are_listened_to, "modules"_a);
  m.def("environment", &environment, "variables"_a);
}
