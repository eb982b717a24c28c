// An exchange through the mailbox of a host's ranks, without Python: a meeting takes as long as the memory does.
#pragma once

#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "exchange.h"
#include "mailbox.h"

namespace wholebatch {

class MailboxExchange : public Exchange {
public:
  // header_of: what a meeting is called. settle: gets a meeting that did not come about at once, and returns when it
  // has, or throws. Both are called rarely.
  MailboxExchange(Mailbox &box, std::function<Mailbox::Header(At, int, std::int64_t)> header_of,
                  std::function<void(Mailbox::Status)> settle)
      : box_(box), header_of_(std::move(header_of)), settle_(std::move(settle)) {}

  void begin(At at, int layer, const double *own, std::int64_t width) override {
    const auto key = std::make_pair(at, layer); // width is the same in every step
    auto known = headers_.find(key);
    if (known == headers_.end())
      known = headers_.emplace(key, header_of_(at, layer, width)).first;
    gathered_.resize(static_cast<std::size_t>(box_.ranks() * (1 + width)));
    box_.begin(known->second, 0, {{own, nullptr}, {width, 0}, true}, gathered_.data());
  }

  const double *finish() override {
    constexpr double slice = 0.05; // seconds; then somebody looks for the others
    const Mailbox::Status status = box_.wait(slice);
    if (status != Mailbox::Status::met)
      settle_(status);
    return gathered_.data();
  }

private:
  Mailbox &box_;
  std::function<Mailbox::Header(At, int, std::int64_t)> header_of_;
  std::function<void(Mailbox::Status)> settle_;
  std::map<std::pair<At, int>, Mailbox::Header> headers_;
  std::vector<double> gathered_;
};

} // namespace wholebatch
