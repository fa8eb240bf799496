// What a kernel is asked, as plain data: the operators fill it in, the kernels of every instruction set read it.
#pragma once

#include <stdint.h>

namespace exprune {

enum class Dtype : int { Float32, BFloat16, Half };
enum class GuardKind : int { None, Threshold, StatsTest, FinitePopulation, Calibrated, Bound, Pooled };
enum class Activation : int { Relu, Relu6, ReluSquared };

// A run of neighbouring numbers that a neuron reads, in its receptive field and in its row of weights.
struct Run {
  int64_t input;   // offset from the receptive field's first number, in the chunk's plane
  int64_t weight;  // offset from the row's first number
  int64_t length;
};

// Some channels of an image, all pixels: what a chunk reads. Small enough to stay in the innermost cache.
struct Plane {
  int64_t first, last;  // channels
  int64_t offset;       // of its first number in the image
  int64_t pitch;        // numbers from one pixel to the next
};

// What is added up at once: the runs over one plane, by kernel row.
struct Chunk {
  const Run* runs;
  const int32_t* of_row;  // [kernel_rows + 1]: runs of kernel row ky are of_row[ky] .. of_row[ky + 1]
  Plane plane;
};

// The chunks of one segment of the terms: head, between two stages, tail.
struct Segment {
  const Chunk* chunks;
  int64_t count;
};

// A matrix of rows, one a neuron, of any of the dtypes.
struct Rows {
  const void* data;
  int64_t stride;  // elements from one row to the next
};

// Where the numbers lie that a segment reads: planes of [images, height, width, channels], float32, with a border.
struct Image {
  const float* data;
  int64_t channels, width, height;  // with the border
  const Plane* planes;
  int64_t plane_count;
};

struct Geometry {
  int64_t images;
  int64_t kernel_rows, kernel_columns;
  int64_t rows_out, columns_out;
  int64_t stride_rows, stride_columns;
  int64_t padding_rows, padding_columns;
  int64_t dilation_rows, dilation_columns;
  int64_t rows_in, columns_in;  // without the padding
};

// The rules that read the sum of the squared terms. (Static: units of several instruction sets include this file.)
static inline bool needs_squares(GuardKind kind) {
  return kind == GuardKind::StatsTest || kind == GuardKind::FinitePopulation;
}

struct Guard {
  GuardKind kind;
  float number;           // threshold or quantile
  const float* limits;    // Calibrated: [stages, outputs]; Bound, Pooled: [stages, 2, outputs]
  const int64_t* seen;    // [stages], terms
  int64_t terms, elements;
  const float* input_norms;  // Bound: [stages + 1, pixels]: of what each stage has not seen, and of the whole input
};

constexpr int64_t kCodeBlock = 256;  // columns whose error has one norm: as in exprune_fx/ops/codes.py
constexpr int64_t kReadBeyond = 64;  // bytes behind codes that may be read

// A linear weight once more, rounded to 8 bits, with what the rounding costs: see exprune_fx/ops/codes.py. What they
// prove is not read from the weight; no result depends on them. With a rest, the weight itself is not read at all.
struct Codes {
  const int8_t* data;       // segment by segment [outputs, numbers of the segment], and 64 bytes that may be read; or null
  const float* numbers;     // [1 + blocks, outputs]: scale; the error's norm over each block of columns
  const float* slack;       // [3]: for rounding, per unit of |x| and per tick; the least tick per unit of |x|
  const int64_t* ends;      // [segments], columns
  int64_t segments;
  const int16_t* rest;      // what the codes leave of the weights, in 2^-16 of the scales, laid out as they are; or null
  const char* inputs;       // what the rows of the input come to, one behind the other: filled in by the kernel
};

// A convolution's head in 8 bits: the whole pre-activation, from codes of its weights and ticks of its input, which are
// what site.head_input and site.head_weight then hold, four to a float. See exprune_fx/ops/coded.py.
struct CodedHead {
  const float* scales;    // [outputs], of the codes; or null: the head is not coded
  const float* sums;      // [outputs], of the codes: whole numbers
  const float* ticks;     // [images]: what one tick of the input is worth; NaN where nothing may be concluded from it
  const int32_t* zeros;   // [images]: the ticks of zero
  const int16_t* rest;    // what the codes leave of the weights, in 2^-16 of the scales, laid out as they are; or null
  bool vnni;              // the processor multiplies four pairs of bytes a lane (AVX-512 VNNI)
};

// One site: neurons x pixels. A linear layer is a convolution with one tap, its rows of input being the pixels.
struct Site {
  Dtype dtype;  // of the weights
  Geometry geometry;
  int64_t outputs, pixels;
  Rows weight, head_weight;    // the same, unless the head is principal or packed
  Image input, head_input;     // the same, unless the head is principal
  int64_t stages;              // 0: no head
  bool principal;
  bool packed_head;            // the head's rows lie one behind another, apart from the weight's
  bool few_pixels;             // a piece of work is some neurons at every pixel, not some pixels for some neurons
  bool by_taps;                // the images are small, and many taps lie in the padding: these are left out
  bool large;                  // the weights do not stay in the cache from one call to the next
  bool in_memory;              // so large, of a linear layer, and each row of weights is read for few rows of input
  bool head_in_pixel_lanes;    // the head is a matrix product over whole images
  int64_t window_rows, window_columns;  // Pooled: of the max pool that alone reads the result; else 0
  bool pools;                  // the result is that pool's
  int64_t block;               // numbers in one term (linear)
  const Segment* segments;     // [stages + 1]; the last is the tail
  Guard guard;
  Activation activation;
  Codes codes;                 // of a linear layer, or none
  CodedHead coded;             // then `principal` too: its sums are no part of the neurons'
  const float* bias;           // [outputs] or null
  const float* residual;       // float32 or null
  int64_t residual_image, residual_row, residual_column, residual_output;  // strides
  void* result;                // [pixels, outputs], or [windows, outputs] if it `pools`; dtype
};

// out[row, :] = sum over j of hidden[row, j] * weight[j, :] + bias, reading the rows of weight whose hidden is not zero.
struct SecondLayer {
  int64_t rows, hidden_size, outputs;
  const void* hidden;       // [rows, hidden_size]
  Rows weight;              // [hidden_size, outputs]
  const float* bias;        // [outputs] or null
  void* result;             // [rows, outputs]
  const int8_t* codes;      // [hidden_size, outputs], read with their rest in place of a float32 weight; or null
  const int16_t* rest;
  const float* scales;      // [hidden_size], of the codes
};

// hidden[row, j] *= input[row, :] . weight[j, :] + bias[j] where it is not zero.
struct ValueBranch {
  int64_t rows, hidden_size;
  Image input;              // rows of input as pixels
  Rows weight;              // [hidden_size, features]
  const float* bias;        // [hidden_size] or null
  void* hidden;             // [rows, hidden_size]
};

// linear -> activation (-> times the value branch) -> linear. The site's result is what the others take for hidden.
struct FeedForward {
  const Site* site;
  const ValueBranch* value;  // or null
  SecondLayer second;
};

constexpr int64_t kMostWinners = 64, kMostStages = 4;  // of an election

// The `winners` largest of weight[j, :] . input[row, :] + bias[j] over all classes j, for each row: a class is computed
// only if its upper bound reaches what so many others are known to have. See exprune_fx/ops/dominance.py for the tables.
struct Election {
  int64_t rows, classes, features, winners;
  const void* input;        // [rows, features], dtype
  Rows weight;              // [classes, features]
  const float* bias;        // [classes] or null
  const int8_t* codes;      // stage by stage [classes, features of the stage], and 64 bytes that may be read
  const float* numbers;     // [2 + 2 * stages, classes]: scale, shift; by stage: error of what is seen, norm of the rest
  const float* center;      // [2, features]: what is subtracted from inputs, and from all rows of weights; or null
  const float* basis;       // [features, features], or [features] if it is diagonal, or null
  bool diagonal;
  const float* slack;       // [5]: see Tables.slack
  int64_t stages;
  const int64_t* seen;      // [stages], features
  const double* reach;      // [stages]
  void* values;             // [rows, winners], dtype, or null
  int64_t* indices;         // [rows, winners]
};

// The operator's input, of any dtype and strides (in elements).
struct Source {
  Dtype dtype;
  const void* data;
  int64_t image, row, column, channel;  // strides
};

// Work shared out in pieces: `piece(context, i)` for i in [0, pieces), each once, on any thread.
using Piece = void (*)(const void* context, int64_t index);

// What a kernel needs of whoever calls it.
struct Host {
  void (*parallel)(int64_t pieces, Piece piece, const void* context);
  int64_t (*threads)();  // that may take part: nothing that is computed may depend on it
  // Memory for one purpose, 64-byte aligned; it is the caller's until the same purpose is asked for again.
  void* (*scratch)(int purpose, int64_t bytes);
};

enum Purpose : int { kInputImage, kHeadImage, kHidden, kPanels, kSquares, kPartials, kNorms, kElection, kCodedInput, kImageTicks, kPurposes };

// The kernels of one instruction set for one dtype.
struct Kernels {
  int64_t head_pixels;    // of the register tile of a head in pixel lanes
  int64_t chunk_numbers;  // of the input that a chunk over many pixels may read: they stay in a cache close by
  // to = numbers of the dtype, widened.
  void (*widen)(const void* from, int64_t count, float* to);
  // to = the source, widened, with a border of zeros.
  void (*widen_image)(const Source& source, const Geometry& geometry, float* to, const Image& layout, const Host& host);
  // to[pixel, :] = rows * from[pixel, :] at every pixel inside the padding; the border is left alone.
  void (*dense_pixels)(const Image& from, const Geometry& geometry, const Rows& rows, float* to, const Image& layout,
                       const Host& host);
  // to = the ticks of the input, a byte each, with a border of zero's; image by image what they are worth.
  void (*tick_image)(const Image& from, const Geometry& geometry, uint8_t* to, const Image& layout, float* ticks,
                     int32_t* zeros, const Host& host);
  // Bound's input norms, [stages + 1, pixels].
  void (*input_norms)(const Site& site, float* norms, const Host& host);
  void (*site)(const Site& site, const Host& host);
  void (*feed_forward)(const FeedForward& layers, const Host& host);
  void (*election)(const Election& election, const Host& host);
};

enum class Isa : int { Portable = 0, Avx2 = 2, Avx512 = 5 };  // the values of EXPRUNE_ISA

template <Isa isa, Dtype dtype>
const Kernels& kernels_of();

}  // namespace exprune
