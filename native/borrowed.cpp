#include "borrowed.h"

#include <algorithm>

namespace nb = nanobind;

namespace wholebatch {

namespace {

// The head of DLPackExchangeAPI, version 1: what comes before the one function that is used.
struct ExchangeApi {
  struct {
    std::uint32_t major, minor;
  } version;
  const ExchangeApi *previous;
  void *allocate, *to_managed, *from_managed;
  int (*borrow)(void *object, Borrowed *out);
};

PyTypeObject *tensor_type = nullptr, *parameter_type = nullptr;
int (*borrow_from_torch)(void *object, Borrowed *out) = nullptr;

bool is_alone(std::int64_t extent) { return extent == 1; } // its stride says nothing

} // namespace

bool use_exchange(nb::type_object tensor, nb::type_object parameter, nb::handle capsule) {
  tensor_type = reinterpret_cast<PyTypeObject *>(tensor.ptr());
  parameter_type = reinterpret_cast<PyTypeObject *>(parameter.ptr());
  borrow_from_torch = nullptr;
  if (capsule.is_none())
    return false;
  const auto *api = static_cast<const ExchangeApi *>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (api == nullptr)
    throw nb::python_error();
  while (api != nullptr && api->version.major != 1)
    api = api->previous;
  borrow_from_torch = api == nullptr ? nullptr : api->borrow;
  return borrow_from_torch != nullptr;
}

bool borrow(nb::handle tensor, Borrowed &out) {
  const PyTypeObject *type = Py_TYPE(tensor.ptr());
  if (borrow_from_torch == nullptr || (type != tensor_type && type != parameter_type))
    return false;
  if (borrow_from_torch(tensor.ptr(), &out) != 0) { // no memory, or none that can be described
    PyErr_Clear();
    return false;
  }
  return out.device.device_type == nb::device::cpu::value && out.data != nullptr && out.dtype.lanes == 1;
}

bool borrow_vector(nb::handle tensor, std::int64_t channels, bool wide, void *&out) {
  out = nullptr;
  if (tensor.is_none())
    return true;
  Borrowed x;
  if (!borrow(tensor, x) || x.ndim != 1 || x.shape[0] != channels || !is_float(x, wide ? 64 : 32) || !is_contiguous(x))
    return false;
  out = static_cast<char *>(x.data) + x.byte_offset;
  return true;
}

bool is_float(const Borrowed &x, int bits) {
  return x.dtype.code == static_cast<std::uint8_t>(nb::dlpack::dtype_code::Float) && x.dtype.bits == bits;
}

bool is_contiguous(const Borrowed &x) {
  std::int64_t next = 1;
  for (std::int32_t d = x.ndim - 1; d >= 0; --d) {
    if (!is_alone(x.shape[d]) && x.strides[d] != next)
      return false;
    next *= x.shape[d];
  }
  return true;
}

bool is_channels_last(const Borrowed &x) {
  if (x.ndim < 3 || (!is_alone(x.shape[1]) && x.strides[1] != 1))
    return false;
  std::int64_t next = x.shape[1];
  for (std::int32_t d = x.ndim - 1; d >= 0; --d) {
    if (d == 1)
      continue;
    if (!is_alone(x.shape[d]) && x.strides[d] != next)
      return false;
    next *= x.shape[d];
  }
  return true;
}

bool are_alike(const Borrowed &a, const Borrowed &b) {
  if (!(a.dtype == b.dtype) || a.ndim != b.ndim || !std::equal(a.shape, a.shape + a.ndim, b.shape))
    return false;
  for (std::int32_t d = 0; d < a.ndim; ++d)
    if (!is_alone(a.shape[d]) && a.strides[d] != b.strides[d])
      return false;
  return true;
}

} // namespace wholebatch
