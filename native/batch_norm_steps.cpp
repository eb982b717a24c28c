#include "batch_norm_steps.h"

#include <stdexcept>

namespace nb = nanobind;

namespace wholebatch {

namespace {

Address start(const Borrowed &x) { return reinterpret_cast<Address>(x.data) + x.byte_offset; }

std::int64_t product(const std::int64_t *extents, std::int32_t count) {
  std::int64_t all = 1;
  for (std::int32_t d = 0; d < count; ++d)
    all *= extents[d];
  return all;
}

bool read_storage(const Borrowed &z, Storage &storage) {
  if (is_float(z, 32))
    storage = Storage::float32;
  else if (is_float(z, 64))
    storage = Storage::float64;
  else if (z.dtype.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Bfloat) && z.dtype.bits == 16)
    storage = Storage::bfloat16;
  else
    return false;
  return true;
}

// As place_of in kernels/place.py: the bits of sums depend on it.
bool read_shape(const Borrowed &z, Shape &shape) {
  const std::int64_t channels = z.shape[1], all = product(z.shape, z.ndim);
  if (is_contiguous(z)) // one plane is as good as many
    shape = channels == 1 ? Shape{1, 1, all} : Shape{z.shape[0], channels, product(z.shape + 2, z.ndim - 2)};
  else if (is_channels_last(z))
    shape = {all / channels, channels, 1};
  else
    return false;
  return true;
}

// z, what is added and the affine terms, as far as both directions have them.
bool read_inputs(nb::handle z, nb::handle weight, nb::handle bias, nb::handle residual, Borrowed &input, Part &part) {
  part = Part{};
  void *scale, *offset;
  if (!borrow(z, input) || input.ndim < 2 || product(input.shape, input.ndim) == 0 ||
      !read_storage(input, part.storage) || !read_shape(input, part.shape))
    return false;
  const bool wide = part.storage == Storage::float64;
  if (!borrow_vector(weight, part.shape.channels, wide, scale) ||
      !borrow_vector(bias, part.shape.channels, wide, offset))
    return false;
  part.z = start(input);
  part.weight = reinterpret_cast<Address>(scale);
  part.bias = reinterpret_cast<Address>(offset);
  if (residual.is_none())
    return true;
  Borrowed added;
  if (!borrow(residual, added) || !are_alike(added, input))
    return false;
  part.residual = start(added);
  return true;
}

// Memory for an output; 0: there is none.
Address lay(nb::handle out, const Borrowed &like) {
  if (out.is_none())
    return 0;
  Borrowed memory;
  if (!borrow(out, memory) || !are_alike(memory, like))
    throw std::logic_error("an output's memory is not laid out as the input's");
  return start(memory);
}

} // namespace

bool read(const Forward &given, Step &out) {
  Borrowed z;
  if (!read_inputs(given.z, given.weight, given.bias, given.residual, z, out.part))
    return false;
  out.wide = out.part.storage == Storage::float64;
  out.bytes = out.part.shape.size() * z.dtype.bits / 8;
  void *running_mean, *running_var;
  const std::int64_t channels = out.part.shape.channels;
  if (!borrow_vector(given.running_mean, channels, out.wide, running_mean) ||
      !borrow_vector(given.running_var, channels, out.wide, running_var))
    return false;
  out.running_mean = reinterpret_cast<Address>(running_mean);
  out.running_var = reinterpret_cast<Address>(running_var);
  out.part.out = lay(given.y, z);
  out.counter = nullptr;
  if (given.counter.is_none())
    return true;
  Borrowed counter;
  if (!borrow(given.counter, counter) || counter.ndim != 0 || counter.dtype.bits != 64 ||
      counter.dtype.code != static_cast<std::uint8_t>(nb::dlpack::dtype_code::Int))
    return false;
  out.counter = at<std::int64_t>(start(counter));
  return true;
}

bool read(const Backward &given, StepBack &out) {
  Borrowed z, g;
  void *dweight, *dbias;
  if (!read_inputs(given.z, given.weight, given.bias, given.residual, z, out.part) || !borrow(given.g, g) ||
      !are_alike(g, z))
    return false;
  const bool wide = out.part.storage == Storage::float64;
  const std::int64_t channels = out.part.shape.channels;
  if (!borrow_vector(given.dweight, channels, wide, dweight) || !borrow_vector(given.dbias, channels, wide, dbias))
    return false;
  out.dweight = reinterpret_cast<Address>(dweight);
  out.dbias = reinterpret_cast<Address>(dbias);
  out.part.g = start(g);
  out.part.out = lay(given.dz, z);
  out.part.dresidual = lay(given.dresidual, z);
  return true;
}

} // namespace wholebatch
