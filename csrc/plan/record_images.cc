#include "bridle/average_pool.h"
#include "bridle/copy.h"
#include "bridle/pointwise.h"
#include "bridle/record.h"

namespace bridle {
namespace {

// An op that reads x and writes out.
template <class Arguments>
void add_unary(Plan& plan, const char* name, const PlanTensor& x, const PlanTensor& out, const Arguments& arguments,
               void (*run)(const Arguments&, ThreadPool&)) {
  plan.add(name, {x.buffer}, {out.buffer}, [=](Frame& frame) -> Plan::Step {
    Arguments a = arguments;
    a.x = x.at(frame);
    a.out = out.at(frame);
    return [a, run](ThreadPool& pool) { run(a, pool); };
  });
}

}  // namespace

void record_average_pool(Plan& plan, const PlanTensor& x, const PlanTensor& out) {
  add_unary(plan, "average_pool", x, out, halving_pool_of(x.layout, out.layout), &average_pool);
}

void record_area_pool(Plan& plan, const PlanTensor& x, const PlanTensor& out) {
  add_unary(plan, "area_pool", x, out, area_pool_of(x.layout, out.layout), &average_pool);
}

void record_copy(Plan& plan, const PlanTensor& x, const PlanTensor& out) {
  add_unary(plan, "copy", x, out, copy_of(x.layout, out.layout), &copy);
}

void record_pointwise(Plan& plan, const PlanTensor& x, const PlanTensor& out, double scale, double shift,
                      const std::string& activation) {
  add_unary(plan, "pointwise", x, out, pointwise_of(x.layout, out.layout, scale, shift, activation), &pointwise);
}

}  // namespace bridle
