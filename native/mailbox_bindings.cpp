// What Python sees of the mailbox, and of merging. Addresses come as integers: a call per meeting, and a conversion of
// each tensor would take as long as the meeting. wholebatch/sharing/ checks dtypes, sizes and that memory is
// contiguous.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <stdexcept>

#ifdef __linux__
#include "mailbox.h"
#endif
#include "merging.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace wholebatch {

#ifdef __linux__
Mailbox::Header header_of(const nb::bytes &packed) {
  Mailbox::Header words;
  if (packed.size() != sizeof(words))
    throw std::invalid_argument("a header is " + std::to_string(sizeof(words)) + " bytes long");
  std::memcpy(words.data(), packed.data(), sizeof(words));
  return words;
}
#endif

namespace {

using Address = std::uintptr_t;

double merge(Address gathered, std::int64_t ranks, std::int64_t channels, Address mean, Address m2, bool wide) {
  const auto *parts = reinterpret_cast<const double *>(gathered);
  return wide ? merge_moments(parts, ranks, channels, reinterpret_cast<double *>(mean), reinterpret_cast<double *>(m2))
              : merge_moments(parts, ranks, channels, reinterpret_cast<float *>(mean), reinterpret_cast<float *>(m2));
}

void add(Address gathered, std::int64_t ranks, std::int64_t width, Address out, bool wide) {
  const auto *parts = reinterpret_cast<const double *>(gathered);
  if (wide)
    add_parts(parts, ranks, width, reinterpret_cast<double *>(out));
  else
    add_parts(parts, ranks, width, reinterpret_cast<float *>(out));
}

#ifdef __linux__

int meet(Mailbox &box, const nb::bytes &header, double count, Address first, std::int64_t first_elements,
         Address second, std::int64_t second_elements, bool wide, Address out, double seconds) {
  const Mailbox::Header words = header_of(header);
  const Mailbox::Vectors vectors{{reinterpret_cast<const void *>(first), reinterpret_cast<const void *>(second)},
                                 {first_elements, second_elements},
                                 wide};
  const nb::gil_scoped_release free;
  return static_cast<int>(box.meet(words, count, vectors, reinterpret_cast<double *>(out), seconds));
}

void begin(Mailbox &box, const nb::bytes &header, Address vector, std::int64_t elements, bool wide, Address out) {
  box.begin(header_of(header), 0, {{reinterpret_cast<const void *>(vector), nullptr}, {elements, 0}, wide},
            reinterpret_cast<double *>(out));
}

auto position(const Mailbox &box, int rank) {
  const Mailbox::Position found = box.position(rank);
  return nb::make_tuple(static_cast<int>(found.doing), found.number, found.seconds,
                        nb::bytes(reinterpret_cast<const char *>(found.header.data()), sizeof(found.header)),
                        nb::bytes(found.text.data(), found.text.size()));
}

#endif

} // namespace

void bind_mailbox(nb::module_ &m) {
  m.def("merge_moments", &merge, "gathered"_a, "ranks"_a, "channels"_a, "mean"_a, "m2"_a, "wide"_a);
  m.def("add_parts", &add, "gathered"_a, "ranks"_a, "width"_a, "out"_a, "wide"_a);
#ifdef __linux__
  nb::class_<Mailbox>(m, "Mailbox")
      .def(nb::init<std::uint64_t, int, int>(), "cookie"_a, "ranks"_a, "rank"_a)
      .def(nb::init<const std::string &, std::uint64_t, int, int>(), "path"_a, "cookie"_a, "ranks"_a, "rank"_a)
      .def("descriptor", &Mailbox::descriptor)
      .def("seal", &Mailbox::seal)
      .def("meet", &meet, "header"_a, "count"_a, "first"_a, "first_elements"_a, "second"_a, "second_elements"_a,
           "wide"_a, "out"_a, "seconds"_a)
      .def("begin", &begin, "header"_a, "vector"_a, "elements"_a, "wide"_a, "out"_a)
      .def(
          "stand_by", [](Mailbox &box, double seconds) { return static_cast<int>(box.stand_by(seconds)); }, "seconds"_a,
          nb::call_guard<nb::gil_scoped_release>())
      .def(
          "wait", [](Mailbox &box, double seconds) { return static_cast<int>(box.wait(seconds)); }, "seconds"_a,
          nb::call_guard<nb::gil_scoped_release>())
      .def(
          "mark",
          [](Mailbox &box, int doing, const nb::bytes &text) {
            box.mark(static_cast<Mailbox::Doing>(doing), std::string(text.c_str(), text.size()));
          },
          "doing"_a, "text"_a)
      .def("position", &position, "rank"_a)
      .def("missing", &Mailbox::missing);
#endif
}

} // namespace wholebatch
