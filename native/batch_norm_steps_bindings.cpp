// What Python sees of a training step in one call each way: wholebatch/ordinary.py.
#include <nanobind/nanobind.h>

#include <optional>
#include <stdexcept>
#include <vector>

#include "batch_norm_statistics.h"
#include "batch_norm_steps.h"
#ifdef __linux__
#include "mailbox.h"
#include "merging.h"
#endif

namespace nb = nanobind;
using namespace nb::literals;

namespace wholebatch {

#ifdef __linux__
Mailbox::Header header_of(const nb::bytes &packed); // mailbox_bindings.cpp
#endif

namespace {

using Tensor = nb::handle;

// Bytes of the input where the tensors are such as `train` takes, negative where there is one value per channel; 0:
// they are not.
std::int64_t fits(Tensor z, Tensor weight, Tensor bias, Tensor residual, Tensor running_mean, Tensor running_var,
                  Tensor counter) {
  Step step;
  const Forward given{z, weight, bias, residual, nb::none(), running_mean, running_var, counter};
  if (!read(given, step))
    return 0;
  return step.part.shape.count() == 1 ? -step.bytes : step.bytes;
}

Step read_again(const Forward &given, double slope) {
  Step step;
  if (!read(given, step) || step.part.out == 0)
    throw std::logic_error("these tensors do not fit");
  step.part.slope = slope;
  return step;
}

template <class A> void move(const Step &step, const Found &found, double momentum) {
  move_both<A>(found.channels, found.mean<A>(), found.count, static_cast<A>(momentum), at<A>(step.running_mean),
               at<A>(step.running_var));
  if (step.counter != nullptr)
    ++*step.counter;
}

Found train(Tensor z, Tensor weight, Tensor bias, Tensor residual, Tensor y, Tensor running_mean, Tensor running_var,
            Tensor counter, double slope, double eps, double momentum) {
  const Step step = read_again({z, weight, bias, residual, y, running_mean, running_var, counter}, slope);
  Found found(step.part.shape.channels, step.wide, static_cast<double>(step.part.shape.count()));
  run(step.part, [&]<class T>(const BatchNorm<T> &job) {
    using A = Accumulator<T>;
    job.forward(eps, found.mean<A>(), found.m2<A>(), found.rstd<A>());
    move<A>(step, found, momentum);
  });
  return found;
}

// False: the gradient does not lie in memory as the input.
bool differentiate(const Found &found, Tensor g, Tensor z, Tensor weight, Tensor bias, Tensor residual, Tensor dz,
                   Tensor dresidual, Tensor dweight, Tensor dbias, double slope) {
  StepBack step;
  if (!read({g, z, weight, bias, residual, dz, dresidual, dweight, dbias}, step))
    return false;
  step.part.slope = slope;
  run(step.part, [&]<class T>(const BatchNorm<T> &job) {
    using A = Accumulator<T>;
    std::vector<A> sums(static_cast<std::size_t>(2 * found.channels));
    job.backward(found.mean<A>(), found.rstd<A>(), found.count, sums.data());
    hand_out<A>(found.channels, sums.data(), at<A>(step.dweight), at<A>(step.dbias));
  });
  return true;
}

// Of mean and rstd, for what goes by addresses.
nb::tuple addresses_of(const Found &found) {
  const auto mean = reinterpret_cast<Address>(found.mean<char>());
  return nb::make_tuple(mean, mean + 2 * static_cast<Address>(found.channels) * (found.wide ? 8 : 4));
}

#ifdef __linux__

constexpr double slice = 0.05; // seconds; then Python looks at signals, and for the ranks that are missing

// A meeting of the ranks: `own` vectors of this one to `gathered`, by the mailbox.
template <class A>
Mailbox::Status meet(Mailbox &box, const Mailbox::Header &header, double count, const A *own, std::int64_t elements) {
  const bool wide = std::is_same_v<A, double>;
  return box.meet(header, count, {{own, nullptr}, {elements, 0}, wide}, box.room(1 + elements), slice);
}

// What is left once the ranks have met.
template <class T>
void finish(Mailbox &box, const BatchNorm<T> &job, const Step &step, Found &found, double eps, double momentum) {
  using A = Accumulator<T>;
  A *mean = found.mean<A>(), *m2 = found.m2<A>(), *rstd = found.rstd<A>();
  found.count = merge_moments(box.room(1 + 2 * found.channels), box.ranks(), found.channels, mean, m2);
  if (found.count == 1)
    return; // there is no variance: Python says so
  find_rstd<A>(found.channels, m2, found.count, eps, rstd);
  job.apply(mean, rstd);
  move<A>(step, found, momentum);
}
template <class T> void finish_back(Mailbox &box, const BatchNorm<T> &job, const Found &found) {
  using A = Accumulator<T>;
  A *sums = found.sums<A>();
  add_parts(box.room(1 + 2 * found.channels), box.ranks(), 2 * found.channels, sums);
  job.input_gradient(found.mean<A>(), found.rstd<A>(), sums, found.count);
}

// `train` by ranks of this host. The status is that of the meeting: unless it is `met`, `train_on` follows when the
// ranks have met after all, with the same arguments.
nb::tuple train_together(Mailbox &box, const nb::bytes &header, Tensor z, Tensor weight, Tensor bias, Tensor residual,
                         Tensor y, Tensor running_mean, Tensor running_var, Tensor counter, double slope, double eps,
                         double momentum) {
  const Step step = read_again({z, weight, bias, residual, y, running_mean, running_var, counter}, slope);
  const Mailbox::Header words = header_of(header);
  std::optional<Found> found(std::in_place, step.part.shape.channels, step.wide, 0);
  Mailbox::Status status{};
  {
    const nb::gil_scoped_release free;
    by_storage(step.part, [&]<class T>(const BatchNorm<T> &job) {
      using A = Accumulator<T>;
      job.moments(found->mean<A>(), found->m2<A>());
      status = meet(box, words, static_cast<double>(step.part.shape.count()), found->mean<A>(), 2 * found->channels);
      if (status == Mailbox::Status::met)
        finish(box, job, step, *found, eps, momentum);
    });
  }
  return nb::make_tuple(static_cast<int>(status), std::move(*found));
}

void train_on(Mailbox &box, Found &found, Tensor z, Tensor weight, Tensor bias, Tensor residual, Tensor y,
              Tensor running_mean, Tensor running_var, Tensor counter, double slope, double eps, double momentum) {
  const Step step = read_again({z, weight, bias, residual, y, running_mean, running_var, counter}, slope);
  const nb::gil_scoped_release free;
  by_storage(step.part, [&]<class T>(const BatchNorm<T> &job) { finish(box, job, step, found, eps, momentum); });
}

// `differentiate` by ranks of this host; -1: the gradient does not lie in memory as the input, and nobody was met.
int differentiate_together(Mailbox &box, const nb::bytes &header, const Found &found, Tensor g, Tensor z, Tensor weight,
                           Tensor bias, Tensor residual, Tensor dz, Tensor dresidual, Tensor dweight, Tensor dbias,
                           double slope) {
  StepBack step;
  if (!read({g, z, weight, bias, residual, dz, dresidual, dweight, dbias}, step))
    return -1;
  step.part.slope = slope;
  const Mailbox::Header words = header_of(header);
  Mailbox::Status status{};
  const nb::gil_scoped_release free;
  by_storage(step.part, [&]<class T>(const BatchNorm<T> &job) {
    using A = Accumulator<T>;
    A *sums = found.sums<A>();
    job.sums(found.mean<A>(), found.rstd<A>(), sums);
    hand_out<A>(found.channels, sums, at<A>(step.dweight), at<A>(step.dbias));
    status = meet(box, words, 0, sums, 2 * found.channels);
    if (status == Mailbox::Status::met)
      finish_back(box, job, found);
  });
  return static_cast<int>(status);
}

void differentiate_on(Mailbox &box, const Found &found, Tensor g, Tensor z, Tensor weight, Tensor bias, Tensor residual,
                      Tensor dz, Tensor dresidual, Tensor dweight, Tensor dbias, double slope) {
  StepBack step;
  if (!read({g, z, weight, bias, residual, dz, dresidual, dweight, dbias}, step))
    throw std::logic_error("these tensors do not fit");
  step.part.slope = slope;
  const nb::gil_scoped_release free;
  by_storage(step.part, [&]<class T>(const BatchNorm<T> &job) { finish_back(box, job, found); });
}

#endif

} // namespace

void bind_batch_norm_steps(nb::module_ &m) {
  nb::set_leak_warnings(false); // a graph that outlives the interpreter, as jit.trace keeps one, holds what was found
  m.def("use_exchange", &use_exchange, "tensor"_a, "parameter"_a, "capsule"_a.none());
  nb::class_<Found>(m, "Found").def_ro("count", &Found::count).def_prop_ro("addresses", &addresses_of);
  const auto optional = [](const char *name) { return nb::arg(name).none(); };
  m.def("fits", &fits, "z"_a, optional("weight"), optional("bias"), optional("residual"), optional("running_mean"),
        optional("running_var"), optional("counter"));
  m.def("train", &train, "z"_a, optional("weight"), optional("bias"), optional("residual"), "y"_a,
        optional("running_mean"), optional("running_var"), optional("counter"), "slope"_a, "eps"_a, "momentum"_a);
  m.def("differentiate", &differentiate, "found"_a, "g"_a, "z"_a, optional("weight"), optional("bias"),
        optional("residual"), "dz"_a, optional("dresidual"), optional("dweight"), optional("dbias"), "slope"_a);
#ifdef __linux__
  m.def("train_together", &train_together, "box"_a, "header"_a, "z"_a, optional("weight"), optional("bias"),
        optional("residual"), "y"_a, optional("running_mean"), optional("running_var"), optional("counter"), "slope"_a,
        "eps"_a, "momentum"_a);
  m.def("train_on", &train_on, "box"_a, "found"_a, "z"_a, optional("weight"), optional("bias"), optional("residual"),
        "y"_a, optional("running_mean"), optional("running_var"), optional("counter"), "slope"_a, "eps"_a,
        "momentum"_a);
  m.def("differentiate_together", &differentiate_together, "box"_a, "header"_a, "found"_a, "g"_a, "z"_a,
        optional("weight"), optional("bias"), optional("residual"), "dz"_a, optional("dresidual"), optional("dweight"),
        optional("dbias"), "slope"_a);
  m.def("differentiate_on", &differentiate_on, "box"_a, "found"_a, "g"_a, "z"_a, optional("weight"), optional("bias"),
        optional("residual"), "dz"_a, optional("dresidual"), optional("dweight"), optional("dbias"), "slope"_a);
#endif
}

} // namespace wholebatch
