// What Python sees of the engine: a Network per dtype. Arrays are checked in Python (feedforward/native.py) before they
// come here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "dispatch.h"
#ifdef __linux__
#include "mailbox_exchange.h"
#endif
#include "network.h"
#include "peaks.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace wholebatch {

void bind_products(nb::module_ &m); // products_bindings.cpp
MatmulPrecision precision_of(const std::string &name);
void bind_batch_norm(nb::module_ &m);       // batch_norm_bindings.cpp
void bind_batch_norm_steps(nb::module_ &m); // batch_norm_steps_bindings.cpp
void bind_mailbox(nb::module_ &m);          // mailbox_bindings.cpp
#ifdef __linux__
Mailbox::Header header_of(const nb::bytes &packed); // mailbox_bindings.cpp
#endif

namespace {

template <class T, class... Shape> using Array = nb::ndarray<T, Shape..., nb::c_contig, nb::device::cpu>;
template <class T> using Maybe = std::optional<Array<T>>;

template <class T> T *pointer(const std::optional<Array<T>> &array) { return array ? array->data() : nullptr; }

template <class E> E choose(const std::map<std::string, E> &known, const std::string &name) {
  const auto found = known.find(name);
  if (found == known.end())
    throw std::invalid_argument("unknown name: " + name);
  return found->second;
}

Configuration configure(const nb::dict &d) {
  const auto number = [&](const char *key) { return nb::cast<double>(d[key]); };
  const auto text = [&](const char *key) { return nb::cast<std::string>(d[key]); };
  const std::map<std::string, Activation> activations{
      {"relu", Activation::relu},       {"leaky_relu", Activation::leaky_relu},
      {"elu", Activation::elu},         {"gelu", Activation::gelu},
      {"silu", Activation::silu},       {"tanh", Activation::tanh},
      {"sigmoid", Activation::sigmoid}, {"identity", Activation::identity}};
  Configuration c;
  c.sizes = nb::cast<std::vector<int>>(d["sizes"]);
  c.norm = choose<Norm>({{"batch", Norm::batch}, {"layer", Norm::layer}, {"rms", Norm::rms}, {"none", Norm::none}},
                        text("norm"));
  c.after = nb::cast<bool>(d["after"]);
  c.hidden_bias = nb::cast<bool>(d["hidden_bias"]);
  c.activation = choose(activations, text("activation"));
  c.dropout = number("dropout");
  c.eps = number("eps");
  c.momentum = number("momentum");
  c.loss = choose<LossKind>({{"cross_entropy", LossKind::cross_entropy},
                             {"mse", LossKind::mse},
                             {"huber", LossKind::huber},
                             {"bce", LossKind::bce}},
                            text("loss"));
  c.label_smoothing = number("label_smoothing");
  c.delta = number("delta");
  c.scale = number("scale");
  c.alpha = number("alpha");
  c.class_weights = nb::cast<std::vector<double>>(d["class_weights"]);
  c.optimizer = choose<OptimizerKind>(
      {{"sgd", OptimizerKind::sgd}, {"adam", OptimizerKind::adam}, {"adamw", OptimizerKind::adamw}}, text("optimizer"));
  c.nesterov = nb::cast<bool>(d["nesterov"]);
  c.optimizer_momentum = number("optimizer_momentum");
  c.beta1 = number("beta1");
  c.beta2 = number("beta2");
  c.optimizer_eps = number("optimizer_eps");
  c.eps_hat = nb::cast<bool>(d["eps_hat"]);
  c.weigh_moments = nb::cast<bool>(d["weigh_moments"]);
  c.weight_decay = number("weight_decay");
  c.max_grad_norm = number("max_grad_norm");
  c.seed = nb::cast<std::uint64_t>(d["seed"]);
  c.threads = nb::cast<int>(d["threads"]);
  c.by_neuron = nb::cast<bool>(d["by_neuron"]);
  c.spread = nb::cast<bool>(d["spread"]);
  c.matmul_precision = precision_of(text("matmul_precision"));
  return c;
}

// The four forms that a parameter has.
template <class T> Buffer<T> &form(Parameter<T> &p, const std::string &name) {
  if (name == "value")
    return p.value;
  if (name == "gradient")
    return p.gradient;
  return name == "second" ? p.second : p.first;
}

// Copies between a torch-shaped array and the engine's layout, in either direction.
template <class T>
void exchange(Network<T> &net, int layer, const std::string &role, const std::string &which, Array<T> array,
              bool to_net) {
  const auto copy = [to_net](T &outside, T &inside) { (to_net ? inside : outside) = to_net ? outside : inside; };
  LayerState<T> &state = net.layers().at(static_cast<std::size_t>(layer));
  T *data = array.data();
  if (role == "weight") { // torch's is (outputs, inputs)
    Buffer<T> &buffer = form(state.weight, which);
    net.exchange_weights(state, to_net, data, buffer);
    return;
  }
  for (int o = 0; o < state.outputs; ++o) {
    if (role == "bias")
      copy(data[o], form(state.weight, which)[net.column(state, o).at(state.inputs)]);
    else
      copy(data[o], form(role == "norm_weight" ? state.gamma : state.beta, which)[o]);
  }
}

template <class T>
Table<T> table_of(const Maybe<const T> &dense, const Maybe<const T> &data, const Maybe<const std::int32_t> &indices32,
                  const Maybe<const std::int32_t> &indptr32, const Maybe<const std::int64_t> &indices64,
                  const Maybe<const std::int64_t> &indptr64) {
  Table<T> table;
  table.dense = pointer(dense);
  table.data = pointer(data);
  table.indices32 = pointer(indices32);
  table.indptr32 = pointer(indptr32);
  table.indices64 = pointer(indices64);
  table.indptr64 = pointer(indptr64);
  return table;
}

// Asks Python for signals, and tells progress. Called on the thread that called from Python.
std::function<void(std::int64_t, double)> poller(const nb::object &progress) {
  return [progress](std::int64_t examples, double loss) {
    const nb::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0)
      throw nb::python_error();
    if (!progress.is_none() && examples > 0)
      progress(examples, loss / static_cast<double>(examples));
  };
}

// An exchange that Python does (wholebatch/feedforward/exchange.py). Addresses go there as integers.
class PythonExchange : public Exchange {
public:
  explicit PythonExchange(nb::object object) : object_(std::move(object)) {}
  void begin(At at, int layer, const double *own, std::int64_t width) override {
    const nb::gil_scoped_acquire gil;
    object_.attr("begin")(static_cast<int>(at), layer, reinterpret_cast<std::uintptr_t>(own), width);
  }
  const double *finish() override {
    const nb::gil_scoped_acquire gil;
    return reinterpret_cast<const double *>(nb::cast<std::uintptr_t>(object_.attr("finish")()));
  }
  void send_parts(int layer) override {
    const nb::gil_scoped_acquire gil;
    object_.attr("send_parts")(layer);
  }
  void await_parts(int layer) override {
    const nb::gil_scoped_acquire gil;
    object_.attr("await_parts")(layer);
  }

private:
  nb::object object_;
};

// Through the mailbox where Python's exchange has one.
std::unique_ptr<Exchange> exchange_of(const nb::object &object) {
  if (object.is_none())
    return nullptr;
#ifdef __linux__
  if (const nb::object box = object.attr("box")(); !box.is_none())
    return std::make_unique<MailboxExchange>(
        nb::cast<Mailbox &>(box),
        [object](Exchange::At at, int layer, std::int64_t width) {
          const nb::gil_scoped_acquire gil;
          return header_of(nb::cast<nb::bytes>(object.attr("header")(static_cast<int>(at), layer, width)));
        },
        [object](Mailbox::Status status) {
          const nb::gil_scoped_acquire gil;
          object.attr("settle")(static_cast<int>(status));
        });
#endif
  return std::make_unique<PythonExchange>(object);
}

// What of a Spread is only there for the time of a run.
template <class T> struct Spreading {
  Spread<T> spread;
  std::unique_ptr<Exchange> whole, layers;
  std::vector<Array<const std::int64_t>> counts;
  std::vector<Array<const double>> weighings;

  explicit Spreading(const nb::object &given) {
    if (given.is_none())
      return;
    const nb::dict d = nb::cast<nb::dict>(given);
    const auto number = [&](const char *key) { return nb::cast<std::int64_t>(d[key]); };
    const auto address = [&](const char *key) { return reinterpret_cast<T *>(nb::cast<std::uintptr_t>(d[key])); };
    const nb::object all = d["whole"], met = d["layers"];
    whole = exchange_of(all);
    if (!met.is(all))
      layers = exchange_of(met);
    counts.push_back(nb::cast<Array<const std::int64_t>>(d["counts"]));
    if (const nb::object sums = d["weighings"]; !sums.is_none())
      weighings.push_back(nb::cast<Array<const double>>(sums));
    spread.shards = static_cast<int>(number("shards"));
    spread.first = static_cast<int>(number("first"));
    spread.own = static_cast<int>(number("own"));
    spread.near = static_cast<int>(number("near"));
    spread.late = nb::cast<bool>(d["late"]);
    spread.overlap = nb::cast<bool>(d["overlap"]);
    spread.counts = counts.front().data();
    spread.weighings = weighings.empty() ? nullptr : weighings.front().data();
    spread.whole = whole.get();
    spread.layers = met.is(all) ? whole.get() : layers.get();
    spread.parts = address("parts");
    spread.sums = address("sums");
    spread.alternates = nb::cast<bool>(d["alternates"]);
    spread.round = number("round");
  }
};

template <class T> void bind_network(nb::module_ &m, const char *name) {
  nb::class_<Network<T>>(m, name)
      .def("__init__", [](Network<T> *self, const nb::dict &d) { new (self) Network<T>(configure(d), kernels<T>()); })
      .def("set", [](Network<T> &self, int layer, const std::string &role, const std::string &which,
                     Array<T> array) { exchange(self, layer, role, which, array, true); })
      .def("get", [](Network<T> &self, int layer, const std::string &role, const std::string &which,
                     Array<T> array) { exchange(self, layer, role, which, array, false); })
      .def("set_running",
           [](Network<T> &self, int layer, Array<double> mean, Array<double> var, double tracked) {
             LayerState<T> &state = self.layers().at(static_cast<std::size_t>(layer));
             std::copy_n(mean.data(), state.outputs, state.running_mean.get());
             std::copy_n(var.data(), state.outputs, state.running_var.get());
             state.tracked = tracked;
           })
      .def("get_running",
           [](Network<T> &self, int layer, Array<double> mean, Array<double> var) {
             LayerState<T> &state = self.layers().at(static_cast<std::size_t>(layer));
             std::copy_n(state.running_mean.get(), state.outputs, mean.data());
             std::copy_n(state.running_var.get(), state.outputs, var.data());
             return state.tracked;
           })
      .def("is_finite",
           [](const Network<T> &self, int layer) { return self.is_finite(static_cast<std::size_t>(layer)); })
      .def("waited", [](const Network<T> &self) { return static_cast<double>(self.waited()) * 1e-9; })
      .def("exchanged", [](const Network<T> &self) { return static_cast<double>(self.exchanged()) * 1e-9; })
      .def("awaited", [](const Network<T> &self) { return static_cast<double>(self.awaited()) * 1e-9; })
      .def("part_size", &Network<T>::part_size)
      .def("part_of", &Network<T>::part_of, "layer"_a)
      .def("lasted", [](const Network<T> &self) { return static_cast<double>(self.lasted()) * 1e-9; })
      .def("record", &Network<T>::record, "steps"_a, "slow"_a, "factor"_a, "turns"_a = 1, "turn"_a = 0)
      .def("marks", [](const Network<T> &self, int worker) { return self.timeline()->lane(worker).count(); })
      .def("read_marks",
           [](const Network<T> &self, int worker, Array<std::int64_t, nb::ndim<2>> out) {
             const Lane &lane = self.timeline()->lane(worker);
             for (std::size_t i = 0; i < lane.count(); ++i) {
               const Mark &mark = lane[i];
               const std::int64_t row[] = {self.timeline()->nanoseconds(mark.ticks), mark.step, mark.layer,
                                           static_cast<std::int64_t>(mark.doing),
                                           static_cast<std::int64_t>(mark.stage)};
               std::copy(std::begin(row), std::end(row), out.data() + i * std::size(row));
             }
           })
      .def("penalty", &Network<T>::total_penalty)
      .def("refresh", &Network<T>::refresh)
      .def(
          "run",
          [](Network<T> &self, Maybe<const T> dense, Maybe<const T> data, Maybe<const std::int32_t> indices32,
             Maybe<const std::int32_t> indptr32, Maybe<const std::int64_t> indices64,
             Maybe<const std::int64_t> indptr64, Maybe<const std::int64_t> classes, Maybe<const T> values,
             Maybe<const T> weights, Array<const std::int64_t> order, Array<const std::int64_t> offsets,
             std::int64_t first_step, Maybe<const double> learning_rates, bool track, nb::object progress,
             nb::object spread) {
            Table<T> table = table_of<T>(dense, data, indices32, indptr32, indices64, indptr64);
            table.classes = pointer(classes);
            table.values = pointer(values);
            table.weights = pointer(weights);
            const Spreading<T> spreading(spread);
            const typename Network<T>::Epoch epoch{table,           order.data(),
                                                   offsets.data(),  static_cast<std::int64_t>(offsets.size()) - 1,
                                                   first_step,      pointer(learning_rates),
                                                   track,           poller(progress),
                                                   spreading.spread};
            const nb::gil_scoped_release free;
            return self.run(epoch);
          },
          "dense"_a.none(), "data"_a.none(), "indices32"_a.none(), "indptr32"_a.none(), "indices64"_a.none(),
          "indptr64"_a.none(), "classes"_a.none(), "values"_a.none(), "weights"_a.none(), "order"_a, "offsets"_a,
          "first_step"_a, "learning_rates"_a.none(), "track"_a, "progress"_a.none(), "spread"_a.none())
      .def(
          "predict",
          [](Network<T> &self, Maybe<const T> dense, Maybe<const T> data, Maybe<const std::int32_t> indices32,
             Maybe<const std::int32_t> indptr32, Maybe<const std::int64_t> indices64,
             Maybe<const std::int64_t> indptr64, Array<T, nb::ndim<2>> out) {
            const Table<T> table = table_of<T>(dense, data, indices32, indptr32, indices64, indptr64);
            const auto poll = poller(nb::none());
            const nb::gil_scoped_release free;
            self.predict(table, static_cast<std::int64_t>(out.shape(0)), out.data(), poll);
          },
          "dense"_a.none(), "data"_a.none(), "indices32"_a.none(), "indptr32"_a.none(), "indices64"_a.none(),
          "indptr64"_a.none(), "out"_a);
}

} // namespace

} // namespace wholebatch

NB_MODULE(_native, m) {
  using namespace wholebatch;
  m.def("instruction_set", [] { return std::string(name_of(instruction_set())); });
  m.def("has_counter", &Ticks::has_counter);
  m.def("mark_cost", &mark_cost, "marks"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("fma_peak", &fma_peak, "threads"_a, "bursts"_a, "seconds"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("memory_bandwidth", &memory_bandwidth, "threads"_a, "sweeps"_a, "count"_a,
        nb::call_guard<nb::gil_scoped_release>());
  nb::register_exception_translator([](const std::exception_ptr &p, void *) {
    try {
      std::rethrow_exception(p);
    } catch (const Diverged &d) {
      PyObject *arguments = Py_BuildValue("(Li)", static_cast<long long>(d.step), d.layer);
      PyErr_SetObject(PyExc_ArithmeticError, arguments);
      Py_XDECREF(arguments);
    }
  });
  bind_network<float>(m, "NetworkFloat32");
  bind_network<double>(m, "NetworkFloat64");
  bind_batch_norm(m);
  bind_batch_norm_steps(m);
  bind_mailbox(m);
  bind_products(m);
}
