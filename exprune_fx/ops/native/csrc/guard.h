// The stop rules on W neurons at once: the formulas of exprune_fx/ops/reference/rules.py, in float32.
#pragma once

#include "problem.h"
#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {

// What is known of W neurons after a stage. Lanes may be neurons of one pixel or pixels of one neuron.
struct Known {
  Vec partial, squares, constant;
  Vec limit, whole_limit;          // Calibrated: threshold; Bound: norms of the rest's weights and of all
  Vec rest_norm, input_norm;       // Bound
};

constexpr float kEpsilon = 1.1920928955078125e-7f;  // of float32
constexpr float kTiny = 1.17549435082228750797e-38f;

// A bit for each lane that stops here. A comparison with NaN is false: what is not a number goes on.
EXPRUNE_INLINE uint32_t stops(const Guard& guard, int64_t stage, const Known& known) {
  const float seen = static_cast<float>(guard.seen[stage]), terms = static_cast<float>(guard.terms);
  switch (guard.kind) {
    case GuardKind::Calibrated:
      return less(known.partial + known.constant, known.limit);
    case GuardKind::Threshold:
      return less(known.partial / all(seen) + known.constant / all(terms), all(guard.number));
    case GuardKind::StatsTest:
    case GuardKind::FinitePopulation: {
      const Vec mean = known.partial / all(seen);
      Vec variance = larger(known.squares / all(seen) - mean * mean, zero());
      if (guard.kind == GuardKind::StatsTest) {
        return less(mean + known.constant / all(terms), all(guard.number) * root(variance / all(seen)));
      }
      variance = variance * all(seen / (seen - 1.0f));
      const Vec spread = root(variance * all(terms * (terms - seen) / seen));
      return less(all(terms) * mean + known.constant + all(guard.number) * spread, zero());
    }
    case GuardKind::Bound: {
      const float elements = static_cast<float>(guard.elements);
      const Vec lost = root(all(elements * kTiny));
      const Vec scale = known.whole_limit * (known.input_norm + lost) + magnitude(known.constant);
      const Vec reach = known.limit * (known.rest_norm + lost);
      return less(known.partial + known.constant + reach + all(2.0f * elements * kEpsilon) * scale, zero());
    }
    case GuardKind::None:
    case GuardKind::Pooled:  // looks at whole windows: see rivals.h
      break;
  }
  return 0;
}

EXPRUNE_INLINE Vec activate(Activation activation, Vec z) {
  const Vec positive = larger(zero(), z);  // in this order: NaN stays NaN
  if (activation == Activation::Relu6) return smaller(all(6.0f), positive);
  return activation == Activation::ReluSquared ? positive * positive : positive;
}

}  // namespace EXPRUNE_ISA_NAMESPACE
}  // namespace exprune
