#include <nanobind/nanobind.h>
NB_MODULE(_native, m) { m.def("instruction_set", [] { return "portable"; }); }
