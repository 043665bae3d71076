#include "bridle/embedding.h"
#include "bridle/record.h"
#include "bridle/time_embedding.h"

namespace bridle {

void record_embedding(Plan& plan, const PlanTensor& ids, const PlanTensor& tokens, const PlanTensor& positions,
                      const PlanTensor& out) {
  const Embedding a = embedding_of(ids.layout, tokens.layout, positions.layout, out.layout);
  plan.add("embedding", {ids.buffer, tokens.buffer, positions.buffer}, {out.buffer}, [=](Frame& frame) -> Plan::Step {
    Embedding n = a;
    n.ids = static_cast<const int64_t*>(ids.at(frame));
    n.tokens = tokens.at(frame);
    n.positions = positions.at(frame);
    n.out = out.at(frame);
    return [n](ThreadPool& pool) { embedding(n, pool); };
  });
}

void record_end_token(Plan& plan, const PlanTensor& x, const PlanTensor& ids, const PlanTensor& out,
                      std::optional<int64_t> end) {
  const EndToken a = end_token_of(x.layout, ids.layout, out.layout, end);
  plan.add("end_token", {x.buffer, ids.buffer}, {out.buffer}, [=](Frame& frame) -> Plan::Step {
    EndToken n = a;
    n.x = x.at(frame);
    n.ids = static_cast<const int64_t*>(ids.at(frame));
    n.out = out.at(frame);
    return [n](ThreadPool& pool) { end_token(n, pool); };
  });
}

void record_time_embedding(Plan& plan, const PlanTensor& t, const PlanTensor& frequencies, const PlanTensor& out,
                           bool cosines_first) {
  const TimeEmbedding a = time_embedding_of(t.layout, frequencies.layout, out.layout, cosines_first);
  plan.add("time_embedding", {t.buffer, frequencies.buffer}, {out.buffer}, [=](Frame& frame) -> Plan::Step {
    TimeEmbedding n = a;
    n.t = static_cast<const float*>(t.at(frame));
    n.frequencies = static_cast<const float*>(frequencies.at(frame));
    n.out = out.at(frame);
    return [n](ThreadPool& pool) { time_embedding(n, pool); };
  });
}

}  // namespace bridle
