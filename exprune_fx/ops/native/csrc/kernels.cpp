// The kernels of one instruction set for one dtype: compiled once for each pair of EXPRUNE_ISA and EXPRUNE_DTYPE.
#if EXPRUNE_ISA == 5
#define EXPRUNE_ISA_NAMESPACE avx512
#elif EXPRUNE_ISA == 2
#define EXPRUNE_ISA_NAMESPACE avx2
#else
#define EXPRUNE_ISA_NAMESPACE portable
#endif

#include "across_neurons.h"
#include "coded.h"
#include "election.h"
#include "images.h"
#include "second.h"
#include "ticks.h"
#include "work.h"

namespace exprune {
namespace EXPRUNE_ISA_NAMESPACE {
namespace {

void widen_numbers(const void* from, int64_t count, float* to) {
  const Number* numbers = static_cast<const Number*>(from);
  int64_t i = 0;
  for (; i + W <= count; i += W) store(to + i, load(numbers + i));
  for (; i < count; ++i) to[i] = widen(numbers[i]);
}

constexpr int64_t kPieces = 16;     // wanted of a site, so that threads end together
constexpr int64_t kCodedChunk = 64;  // neurons: the first of them have no others' tails to come in meanwhile
constexpr int64_t kPiecesAThread = 4;  // of a site over few pixels
constexpr int64_t kLeastRows = 16, kRowsNumbers = 16 * 4608;  // of pieces that stay in a cache: half a second one
constexpr int64_t kChunk = W == 16 ? 48 : 32;  // neurons: whole cache lines of results
constexpr int64_t kChunkNumbers = W == 16 ? 9500 : 18000;  // measured: rows overlap, and short vectors gain by long runs

// How a site is cut into pieces of work. A head in pixel lanes has panels: as many of a tile as register tiles hold its
// pixels.
struct Cut {
  const Site* site;
  int lanes;              // of a panel
  int64_t tile_pixels, tiles;
  int64_t chunk_outputs, chunks;
  int64_t panel_pixels;   // of one panel: whole windows
  int64_t panel_numbers;  // of one panel
  int64_t tile_numbers;   // of the panels of one tile
  float* panels;          // [tiles, tile_numbers], of a head in pixel lanes
};

void fill_tile(const Cut& cut, int64_t index, Tile& tile) {
  tile.lanes = cut.lanes;
  tile.panel_pixels = static_cast<int>(cut.panel_pixels);
  tile.panel_numbers = cut.panel_numbers;
  const int64_t first = index * cut.tile_pixels, rest = pixels_read(*cut.site) - first;
  fill(tile, first, static_cast<int>(rest < cut.tile_pixels ? rest : cut.tile_pixels));
}

// Neurons that stop are never written again.
void clear(const Site& site, const Pixel& pixel, int64_t first, int64_t count) {
  memset(static_cast<Number*>(site.result) + pixel.result + first, 0, sizeof(Number) * static_cast<size_t>(count));
}

// Pixels that stand in no window: nobody computes them.
void clear_unread(const Site& site) {
  if (site.pools || pixels_read(site) == site.pixels) return;
  const Geometry& g = site.geometry;
  const int64_t rows = g.rows_out / site.window_rows * site.window_rows;
  const int64_t columns = g.columns_out / site.window_columns * site.window_columns;
  for (int64_t p = 0; p < site.pixels; ++p) {
    const Place place = place_of(g, p);
    if (place.row >= rows || place.column >= columns) clear(site, pixel_at(site, p, place), 0, site.outputs);
  }
}

void panel_piece(const void* context, int64_t index) {
  const Cut& cut = *static_cast<const Cut*>(context);
  Tile tile(*cut.site);
  fill_tile(cut, index, tile);
  float* panel = cut.panels + index * cut.tile_numbers;
  for (int pixel = 0; pixel < tile.count; pixel += tile.panel_pixels, panel += cut.panel_numbers) {
    fill_panel(tile, panel, 0, cut.site->geometry.kernel_rows, pixel);
  }
}

void coded_panel_piece(const void* context, int64_t index) {
  const Cut& cut = *static_cast<const Cut*>(context);
  const int64_t rows = cut.site->geometry.kernel_rows, row = index % rows;
  Tile tile(*cut.site);
  fill_tile(cut, index / rows, tile);
  fill_coded_panel(tile, cut.panels + index / rows * cut.tile_numbers + row * (cut.panel_numbers / rows), row);
}

void tile_piece(const void* context, int64_t index) {
  const Cut& cut = *static_cast<const Cut*>(context);
  const Site& site = *cut.site;
  const int64_t tile_index = index / cut.chunks, first = index % cut.chunks * cut.chunk_outputs;
  const int64_t rest = site.outputs - first;
  Tile tile(site);
  fill_tile(cut, tile_index, tile);
  if (site.by_taps) find_reached(tile);
  tile.first_neuron = first;
  tile.neurons = static_cast<int>(rest < cut.chunk_outputs ? rest : cut.chunk_outputs);
  const float* panel = cut.panels ? cut.panels + tile_index * cut.tile_numbers : nullptr;
  each_panel(tile, [&](int pixel, int count, int windows) {
    const int written = site.pools ? windows : count;  // a window is written where its first pixel is
    for (int j = pixel; j < pixel + written; ++j) clear(site, tile.pixels[j], first, tile.neurons);
  });
  work<Number>(tile, panel);
}

// What the rows of input come to for the codes of a site. Returns the site with them, in memory of the host's.
Site encoded(const Site& site, const Host& host) {
  Site with = site;
  if (!site.codes.data) return with;
  const CodedLayout layout(site.codes);
  char* to = static_cast<char*>(host.scratch(kCodedInput, layout.bytes * site.pixels));
  const Image& image = site.input;  // of few pixels: rows of numbers, none cut
  for (int64_t p = 0; p < site.pixels; ++p) {
    encode(site.codes, layout, image.data + p * image.channels, to + p * layout.bytes);
  }
  with.codes.inputs = to;
  return with;
}

void some_neurons(const Site& site, const Pixel& pixel, int64_t first, int64_t last) {
  clear(site, pixel, first, last - first);
  if (site.codes.data) return coded_neurons_at<Number>(site, pixel, first, last);
  neurons_at<Number>(site, pixel, first, last);
}

// Neurons of a piece of work over few pixels: many, for each of its steps begins with weights that nobody has asked for
// yet, but pieces enough for all threads; whole groups.
int64_t neurons_of_a_piece(int64_t outputs, int64_t group, const Host& host) {
  const int64_t wanted = divide_up(divide_up(outputs, host.threads() * kPiecesAThread), group) * group;
  return wanted < kNeurons ? wanted : kNeurons / group * group;
}

// The same where several pixels read whole rows of weights: so few that the second pixel finds them in a cache.
int64_t neurons_that_stay(const Site& site, const Host& host) {
  const int64_t neurons = neurons_of_a_piece(site.outputs, kLeastGroup, host);
  if (site.pixels == 1 || site.codes.data) return neurons;
  const int64_t row = site.geometry.kernel_rows * site.geometry.kernel_columns * site.input.channels;
  const int64_t fit = divide_up(kRowsNumbers, kLeastRows * row + 1) * kLeastRows;
  return fit < neurons ? fit : neurons;
}

void few_pixels_piece(const void* context, int64_t index) {
  const Cut& cut = *static_cast<const Cut*>(context);
  const Site& site = *cut.site;
  const int64_t first = index * cut.chunk_outputs, end = first + cut.chunk_outputs;
  const int64_t last = end < site.outputs ? end : site.outputs;
  for (int64_t p = 0; p < site.pixels; ++p) {
    some_neurons(site, pixel_at(site, p), first, last);
  }
}

int64_t head_numbers(const Site& site) {
  const Geometry& g = site.geometry;
  return g.kernel_rows * g.kernel_columns * (site.principal ? site.head_input.channels : site.guard.seen[0]);
}

void tick_image(const Image& from, const Geometry& geometry, uint8_t* to, const Image& layout, float* ticks, int32_t* zeros,
                const Host& host) {
  const int64_t rows = geometry.images * layout.height;
  float* ranges = static_cast<float*>(host.scratch(kSquares, rows * 3 * static_cast<int64_t>(sizeof(float))));
  const Ticking ticking{&from, &geometry, &layout, to, ticks, zeros, ranges};
  host.parallel(rows, range_piece, &ticking);
  host.parallel(rows, ticks_piece, &ticking);
}

void site(const Site& site, const Host& host) {
  if (site.pixels == 0 || site.outputs == 0) return;
  if (site.few_pixels) {
    const Site with = encoded(site, host);
    const int64_t neurons = neurons_that_stay(with, host);
    const Cut cut{&with, 0, 0, 1, neurons, divide_up(site.outputs, neurons), 0, 0, 0, nullptr};
    return host.parallel(cut.chunks, few_pixels_piece, &cut);
  }
  const int64_t pixels = pixels_read(site), members = members_of(site);
  const bool coded = site.coded.scales;
  const int lanes = coded ? coded_lanes(site, pixels) : kLaneTile;
  clear_unread(site);
  if (pixels == 0) return;
  const int64_t panel = (site.head_in_pixel_lanes ? lanes : kTile) / members * members;  // whole windows
  const int64_t panels = site.head_in_pixel_lanes && !coded ? kTile / kLaneTile : 1;
  const int64_t tile_pixels = pixels < panels * panel ? pixels : panels * panel;
  const int64_t tiles = divide_up(pixels, tile_pixels);
  const int64_t wanted = divide_up(kPieces, tiles);
  int64_t chunk = divide_up(divide_up(site.outputs, wanted), kChunk) * kChunk;
  if (chunk > kMostNeurons) chunk = kMostNeurons;
  if (coded && site.large && lanes < kLaneTile && chunk < kCodedChunk) chunk = kCodedChunk;
  Cut cut{&site, lanes, tile_pixels, tiles, chunk, divide_up(site.outputs, chunk), panel, 0, 0, nullptr};
  if (site.head_in_pixel_lanes) {
    cut.panel_numbers = head_numbers(site) * lanes;
    cut.tile_numbers = cut.panel_numbers * divide_up(tile_pixels, panel);
    const int64_t bytes = cut.tile_numbers * cut.tiles * static_cast<int64_t>(sizeof(float));
    cut.panels = static_cast<float*>(host.scratch(kPanels, bytes));
    if (coded) {
      host.parallel(cut.tiles * site.geometry.kernel_rows, coded_panel_piece, &cut);
    } else {
      host.parallel(cut.tiles, panel_piece, &cut);
    }
  }
  host.parallel(cut.tiles * cut.chunks, tile_piece, &cut);
}

struct SecondCut {
  const SecondLayer* layer;
  int64_t columns, chunks;
};

void second_piece(const void* context, int64_t index) {
  const SecondCut& cut = *static_cast<const SecondCut*>(context);
  const SecondLayer& layer = *cut.layer;
  const int64_t first = index % cut.chunks * cut.columns, end = first + cut.columns;
  const int64_t row = index / cut.chunks * kRows, last_row = row + kRows;
  second_columns<Number>(layer, first, end < layer.outputs ? end : layer.outputs, row,
                         last_row < layer.rows ? last_row : layer.rows);
}

void value_piece(const void* context, int64_t index) {
  const ValueBranch& branch = *static_cast<const ValueBranch*>(context);
  const int64_t first = index * kLeastGroup, end = first + kLeastGroup;
  for (int64_t row = 0; row < branch.rows; ++row) {
    value_units<Number>(branch, row, first, end < branch.hidden_size ? end : branch.hidden_size);
  }
}

struct GroupCut {
  const FeedForward* layers;
  const Site* site;
  int64_t group, neurons;  // of a piece: whole groups
  int64_t columns, chunks;
  float* partials;  // [groups, rows, outputs]
};

// Some hidden units from their first term to what they add to the outputs, group by group, at every row.
void groups_piece(const void* context, int64_t index) {
  const GroupCut& cut = *static_cast<const GroupCut*>(context);
  const Site& site = *cut.site;
  const SecondLayer& second = cut.layers->second;
  const int64_t begin = index * cut.neurons, wanted = begin + cut.neurons;
  const int64_t end = wanted < site.outputs ? wanted : site.outputs;
  for (int64_t p = 0; p < site.pixels; ++p) {
    some_neurons(site, pixel_at(site, p), begin, end);
    if (cut.layers->value) value_units<Number>(*cut.layers->value, p, begin, end);
    Units units;
    find_units<Number>(second, p, begin, end, units);
    int at = 0;
    for (int64_t first = begin; first < end; first += cut.group) {
      int next = at;
      while (next < units.count && units.list[next] < first + cut.group) ++next;
      float* partial = cut.partials + (first / cut.group * site.pixels + p) * second.outputs;
      add_units<Number>(second, units, at, next - at, 0, second.outputs, partial);
      at = next;
    }
  }
}

void join_piece(const void* context, int64_t index) {
  const GroupCut& cut = *static_cast<const GroupCut*>(context);
  const SecondLayer& second = cut.layers->second;
  const int64_t first = index % cut.chunks * cut.columns, end = first + cut.columns;
  const int64_t last = end < second.outputs ? end : second.outputs;
  join_groups<Number>(second, index / cut.chunks, first, last, cut.partials);
}

void feed_forward(const FeedForward& layers, const Host& host) {
  const SecondLayer& second = layers.second;
  if (second.rows == 0) return;
  if (layers.site->few_pixels) {
    const int64_t group = group_of(second.hidden_size), groups = divide_up(second.hidden_size, group);
    const int64_t bytes = groups * second.rows * second.outputs * static_cast<int64_t>(sizeof(float));
    const Site with = encoded(*layers.site, host);
    const int64_t neurons = neurons_of_a_piece(second.hidden_size, group, host);
    const GroupCut cut{&layers, &with, group, neurons, kColumns, divide_up(second.outputs, kColumns),
                       static_cast<float*>(host.scratch(kPartials, bytes))};
    host.parallel(divide_up(second.hidden_size, neurons), groups_piece, &cut);
    return host.parallel(cut.chunks * second.rows, join_piece, &cut);
  }
  site(*layers.site, host);
  if (layers.value) host.parallel(divide_up(second.hidden_size, kLeastGroup), value_piece, layers.value);
  const int64_t columns = divide_up(divide_up(second.outputs, divide_up(second.outputs, kColumns) * 2), 32) * 32;
  const SecondCut cut{&second, columns, divide_up(second.outputs, columns)};
  host.parallel(cut.chunks * divide_up(second.rows, kRows), second_piece, &cut);
}

void election(const Election& election, const Host& host) { elect<Number>(election, host); }

}  // namespace
}  // namespace EXPRUNE_ISA_NAMESPACE

template <>
const Kernels& kernels_of<static_cast<Isa>(EXPRUNE_ISA), Dtype::EXPRUNE_DTYPE>() {
  using namespace EXPRUNE_ISA_NAMESPACE;
  static const Kernels kernels{kLaneTile,   kChunkNumbers, widen_numbers, widen_image, dense_pixels,
                               tick_image,  input_norms,   site,          feed_forward, election};
  return kernels;
}

}  // namespace exprune
