// A tensor of torch, looked at for the time of a call: its memory, shape and dtype in nanoseconds, where Python's way
// of asking for each takes a tenth of a microsecond or more.
//
// torch says them through the DLPack standard's table of functions (the C exchange API, DLPack 1.3), which is found at
// run time: torch is no part of the build. Older versions of torch have none; nothing can be borrowed then.
// Source: dlpack.h, DLPackExchangeAPI.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>

namespace wholebatch {

using Borrowed = nanobind::dlpack::dltensor;

// The types that can be borrowed, exactly these, and the capsule that torch gives; None: nothing can be borrowed.
// Returns whether it can.
bool use_exchange(nanobind::type_object tensor, nanobind::type_object parameter, nanobind::handle capsule);

// Whether `tensor` is a plain tensor or parameter of the CPU with memory of its own, and what it is.
bool borrow(nanobind::handle tensor, Borrowed &out);

// Of (channels,) numbers one after the other, or None.
bool borrow_vector(nanobind::handle tensor, std::int64_t channels, bool wide, void *&out);

bool is_float(const Borrowed &x, int bits);
bool is_contiguous(const Borrowed &x);
bool is_channels_last(const Borrowed &x);             // of three dimensions or more
bool are_alike(const Borrowed &a, const Borrowed &b); // dtype, shape, and where in memory each element is

} // namespace wholebatch
