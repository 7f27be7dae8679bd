#include "piggyback_boxes.h"

#include <fenv.h>

#include <algorithm>
#include <memory>
#include <new>

namespace piggyback {
namespace {
constexpr float kLeastScore = 0.05f, kOverlap = 0.6f;
constexpr uint32_t kPaddedTo = 32;

// Each product is stored before it is added to, or compilers may round once where Python rounds twice.
float Rounded(float value) {
  const volatile float stored = value;
  return stored;
}
float Area(const Box& box) { return Rounded((box.bottom - box.top) * (box.right - box.left)); }
bool Overlap(const Box& box, const Box& other) {
  const float height = std::max(std::min(box.bottom, other.bottom) - std::max(box.top, other.top), 0.0f);
  const float width = std::max(std::min(box.right, other.right) - std::max(box.left, other.left), 0.0f);
  const float common = Rounded(height * width);
  return common / (Area(box) + Area(other) - common) > kOverlap;
}
float Clipped(float edge, uint32_t side) { return std::min(std::max(edge, 0.0f), static_cast<float>(side)); }
// The middle of a place, of `places` along a side that the network sees padded.
float Centre(uint32_t place, uint32_t places, uint32_t side) {
  const double step = static_cast<double>((side + kPaddedTo - 1) / kPaddedTo * kPaddedTo) / places;
  return static_cast<float>((place + 0.5) * step);
}

void Choose(const Task& task, const float* scores, const float* sides, uint32_t rows, uint32_t columns, Box* all,
            uint32_t* order, Box* boxes, size_t* count) {
  const Signature& graph = task.signature();
  for (uint32_t i = 0; i < rows * columns; ++i) {
    const float y = Centre(i / columns, rows, graph.height), x = Centre(i % columns, columns, graph.width);
    const float* const far = sides + size_t{4} * i;
    all[i] = {Clipped(y - far[0], graph.height), Clipped(x - far[1], graph.width),
              Clipped(y + far[2], graph.height), Clipped(x + far[3], graph.width), 0, 0};
  }
  *count = 0;
  for (uint32_t label = 0; label < task.classes(); ++label) {
    const auto score = [&](uint32_t place) { return scores[size_t{graph.room} * place + label]; };
    uint32_t* end = order;
    for (uint32_t i = 0; i < rows * columns; ++i)
      if (score(i) > kLeastScore && all[i].bottom > all[i].top && all[i].right > all[i].left) *end++ = i;
    // Of equally sure ones the first place is first.
    std::sort(order, end, [&](uint32_t a, uint32_t b) { return score(a) != score(b) ? score(a) > score(b) : a < b; });
    uint32_t* kept = order;
    for (const uint32_t* next = order; next < end && kept < order + kMostBoxes; ++next) {
      const auto hides = [&](uint32_t place) { return Overlap(all[place], all[*next]); };
      if (std::none_of(order, kept, hides)) *kept++ = *next;
    }
    for (const uint32_t* place = order; place < kept; ++place) {
      Box box = all[*place];
      box.label = label, box.score = score(*place);
      // Behind all that are as sure, which are of the classes before, or of places before.
      Box* const spot = std::upper_bound(boxes, boxes + *count, box,
                                         [](const Box& a, const Box& b) { return a.score > b.score; });
      if (spot == boxes + kMostBoxes) break;
      *count = std::min(*count + 1, kMostBoxes);
      std::copy_backward(spot, boxes + *count - 1, boxes + *count);
      *spot = box;
    }
  }
}
}  // namespace

Error ChooseBoxes(const Task& task, Bytes model, const float* scores, const float* sides, uint32_t rows,
                  uint32_t columns, Box* boxes, size_t* count) {
  const size_t places = size_t{rows} * columns;
  if (Error error = task.CheckPoints(model, scores, sides, places)) return error;
  const std::unique_ptr<Box[]> all(new (std::nothrow) Box[places]);
  const std::unique_ptr<uint32_t[]> order(new (std::nothrow) uint32_t[std::max(places, kMostBoxes)]);
  if (!all || !order) return "There is not enough memory.";
  fenv_t environment;  // Rounding to nearest and subnormal numbers, whatever the thread was set to for inference.
  fegetenv(&environment), fesetenv(FE_DFL_ENV);
  Choose(task, scores, sides, rows, columns, all.get(), order.get(), boxes, count);
  fesetenv(&environment);
  return {};
}
}  // namespace piggyback
