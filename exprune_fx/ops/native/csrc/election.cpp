// staged_argmax and staged_topk: schemas, registration, and the way from tensors to an Election.
#include "arguments.h"

namespace exprune {

namespace {

struct Tables {
  const Tensor& codes;
  const Tensor& numbers;
  const Maybe& center;
  const Maybe& basis;
  const Tensor& slack;
  const Sizes& stages;
  const std::vector<double>& reach;
};

// What an election was made from: it owns all that the election points to.
struct Called {
  Election election{};
  Dtype dtype;
  Tensor rows, weight, codes;
  Floats bias, numbers, center, basis, slack;
};

void check_stages(const Tables& tables, int64_t features) {
  const int64_t count = static_cast<int64_t>(tables.stages.size());
  STD_TORCH_CHECK(count >= 1 && count <= kMostStages && tables.reach.size() == tables.stages.size(),
                  "exprune: an election has one to four stages, and a reach for each");
  int64_t before = 0;
  for (const int64_t seen : tables.stages) {
    STD_TORCH_CHECK(seen > before && seen <= features, "exprune: stages must grow up to the number of features");
    before = seen;
  }
}

void make(Called& made, const Tensor& x, const Tensor& weight, const Maybe& bias, const Tables& tables, int64_t winners) {
  STD_TORCH_CHECK(weight.dim() == 2 && x.dim() >= 1 && x.size(-1) == weight.size(1),
                  "exprune: input and weight differ in features");
  Election& e = made.election;
  e.classes = weight.size(0), e.features = weight.size(1), e.winners = winners;
  STD_TORCH_CHECK(winners >= 1 && winners <= kMostWinners && winners <= e.classes,
                  "exprune: an election has 1 to 64 winners, and as many classes at least");
  STD_TORCH_CHECK(e.features >= 1 && e.classes < (int64_t{1} << 31), "exprune: no election over so many classes");
  check_stages(tables, e.features);
  made.dtype = dtype_of(weight, "the weight");
  STD_TORCH_CHECK(dtype_of(x, "the input") == made.dtype, "exprune: input and weight differ in dtype");
  e.rows = numel(x) / e.features;
  made.rows = made_contiguous(x);
  e.input = made.rows.data_ptr();
  made.weight = row_major(weight);
  e.weight = {made.weight.data_ptr(), made.weight.strides()[0]};
  made.bias = widened(bias, e.classes, "the bias");
  e.bias = made.bias.data;
  e.stages = static_cast<int64_t>(tables.stages.size());
  e.seen = tables.stages.data();
  e.reach = tables.reach.data();
  STD_TORCH_CHECK(tables.codes.scalar_type() == ScalarType::Char &&
                      numel(tables.codes) == e.classes * e.seen[e.stages - 1] + kReadBeyond,
                  "exprune: codes are int8, one for each class and feature that is seen, and 64 more");
  made.codes = made_contiguous(tables.codes);
  e.codes = static_cast<const int8_t*>(made.codes.data_ptr());
  made.numbers = widened(Maybe(tables.numbers), (2 + 2 * e.stages) * e.classes, "numbers");
  e.numbers = made.numbers.data;
  made.center = widened(tables.center, 2 * e.features, "the center");
  e.center = made.center.data;
  e.diagonal = tables.basis.has_value() && tables.basis->dim() == 1;
  made.basis = widened(tables.basis, e.diagonal ? e.features : e.features * e.features, "the basis");
  e.basis = made.basis.data;
  made.slack = widened(Maybe(tables.slack), 5, "slack");
  e.slack = made.slack.data;
}

Tensor indices_for(const Tensor& x, const Sizes& sizes) {
  return torch::stable::empty(sizes, ScalarType::Long, std::nullopt, x.device());
}

Tensor staged_argmax(Tensor x, Tensor weight, Maybe bias, Tensor codes, Tensor numbers, Maybe center, Maybe basis,
                     Tensor slack, Sizes stages, std::vector<double> reach) {
  Called made;
  make(made, x, weight, bias, {codes, numbers, center, basis, slack, stages, reach}, 1);
  Tensor indices = indices_for(x, Sizes(x.sizes().begin(), x.sizes().end() - 1));
  made.election.indices = static_cast<int64_t*>(indices.data_ptr());
  if (made.election.rows) kernels(made.dtype).election(made.election, host());
  return indices;
}

std::tuple<Tensor, Tensor> staged_topk(Tensor x, Tensor weight, Maybe bias, Tensor codes, Tensor numbers, Maybe center,
                                       Maybe basis, Tensor slack, Sizes stages, std::vector<double> reach, int64_t k) {
  Called made;
  make(made, x, weight, bias, {codes, numbers, center, basis, slack, stages, reach}, k);
  Sizes sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = k;
  Tensor values = new_like(x, sizes), indices = indices_for(x, sizes);
  made.election.values = values.data_ptr();
  made.election.indices = static_cast<int64_t*>(indices.data_ptr());
  if (made.election.rows) kernels(made.dtype).election(made.election, host());
  return {values, indices};
}

}  // namespace
}  // namespace exprune

#define EXPRUNE_TABLES \
  "Tensor x, Tensor weight, Tensor? bias, Tensor codes, Tensor numbers, Tensor? center, Tensor? basis, Tensor slack, " \
  "int[] stages, float[] reach"

STABLE_TORCH_LIBRARY_FRAGMENT(exprune, library) {
  library.def("staged_argmax(" EXPRUNE_TABLES ") -> Tensor");
  library.def("staged_topk(" EXPRUNE_TABLES ", int k) -> (Tensor values, Tensor indices)");
}

STABLE_TORCH_LIBRARY_IMPL(exprune, CPU, library) {
  library.impl("staged_argmax", TORCH_BOX(&exprune::staged_argmax));
  library.impl("staged_topk", TORCH_BOX(&exprune::staged_topk));
}
