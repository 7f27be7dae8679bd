#include "piggyback_label_maps.h"

#include <fenv.h>
#include <math.h>
#include <stddef.h>

#include <algorithm>
#include <string_view>

namespace piggyback {
namespace {
constexpr uint64_t kMostNumber = 8192, kMostSide = 0x7fffffff;

// A step of an augmentation, such as "resize(256)" or "resize(40, width=56)"; 0 stands for a number that is not given.
struct Step {
  bool crop = false;
  uint64_t size = 0, width = 0;
};
// A side of the image: how long it is by now, and where pixels of the image before have come to.
struct Side {
  uint64_t length;
  double scale = 1, begin = 0;
};

// Takes steps from the front of a text, as the Python patcher reads them; numbers are decimal ones.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}
  bool AtEnd() { return Peek() == '\0'; }
  bool Take(std::string_view word) {
    Peek();
    if (text_.substr(0, word.size()) != word) return false;
    text_.remove_prefix(word.size());
    return true;
  }
  bool TakeStep(Step* step) {
    step->crop = Take("central_crop");
    if ((!step->crop && !Take("resize")) || !Take("(")) return false;
    for (bool named = false, first = true; !Take(")"); first = false) {
      if (!first && !Take(",")) return false;
      const bool size = Take("size"), width = !size && Take("width");
      if ((size || width) && !Take("=")) return false;
      if (named && !size && !width) return false;  // A number by its place is before those with names.
      named = size || width;
      uint64_t* const number = width || (!size && !first) ? &step->width : &step->size;
      if (*number != 0 || !TakeNumber(number)) return false;
    }
    return step->size > 0 && !(step->crop && step->width > 0);
  }

 private:
  char Peek() {
    while (!text_.empty() && (text_[0] == ' ' || text_[0] == '\t')) text_.remove_prefix(1);
    return text_.empty() ? '\0' : text_[0];
  }
  bool TakeNumber(uint64_t* number) {
    if (Peek() < '1' || Peek() > '9') return false;
    for (; !text_.empty() && text_[0] >= '0' && text_[0] <= '9' && *number <= kMostNumber; text_.remove_prefix(1))
      *number = *number * 10 + static_cast<uint64_t>(text_[0] - '0');
    return *number <= kMostNumber;
  }
  std::string_view text_;
};

// What a resize to a shorter side makes of a side; halves go to the even number, as doubles are rounded here.
uint64_t Resized(uint64_t side, uint64_t shorter, uint64_t target) {
  const double exact = static_cast<double>(side * target) / static_cast<double>(shorter);
  return std::max(static_cast<uint64_t>(nearbyint(exact)), target);
}

// Each product is stored before it is added to, or compilers may round once where Python rounds twice.
double Rounded(double value) {
  const volatile double stored = value;
  return stored;
}

bool Prepare(std::string_view augmentation, Side (&sides)[2]) {
  Reader reader(augmentation);
  for (bool first = true; !reader.AtEnd(); first = false) {
    Step step;
    if ((!first && !reader.Take("|")) || !reader.TakeStep(&step)) return false;
    const uint64_t shorter = std::min(sides[0].length, sides[1].length), numbers[2] = {step.size, step.width};
    if (step.crop && shorter < step.size) return false;
    for (size_t i = 0; i < 2; ++i) {
      Side& side = sides[i];
      const uint64_t before = side.length;
      if (step.crop) {
        side.begin = Rounded(side.scale * static_cast<double>((before - step.size) / 2)) + side.begin;
        side.length = step.size;
        continue;
      }
      side.length = step.width > 0 ? numbers[i] : Resized(before, shorter, step.size);
      if (side.length > kMostSide) return false;
      side.scale *= Rounded(static_cast<double>(before) / static_cast<double>(side.length));
    }
  }
  return true;
}

// Where the middle of a pixel went to.
size_t Place(const Side& side, uint32_t pixel) {
  const double inverse = 1 / side.scale;
  const double found = floor(Rounded(inverse * (pixel + 0.5)) - Rounded(inverse * side.begin));
  return static_cast<size_t>(std::min(std::max(found, 0.0), static_cast<double>(side.length - 1)));
}
}  // namespace

Error AtOwnSize(const Task& task, const uint8_t* labels, uint32_t height, uint32_t width, uint8_t* own) {
  const Signature& map = task.signature();
  if (!task.finds_labels() || map.places != uint64_t{map.height} * map.width) return "The task finds no label maps.";
  if (height < 1 || width < 1 || std::max(height, width) > kMostSide) return "An image has sides of 1 to 2147483647.";
  Side sides[2] = {{height}, {width}};
  fenv_t environment;  // Rounding to nearest and subnormal numbers, whatever the thread was set to for inference.
  fegetenv(&environment), fesetenv(FE_DFL_ENV);
  const bool good = Prepare(task.augmentation(), sides);
  const bool fits = good && sides[0].length == map.height && sides[1].length == map.width;
  for (uint32_t y = 0; y < height && fits; ++y) {
    const uint8_t* const row = labels + Place(sides[0], y) * map.width;
    for (uint32_t x = 0; x < width; ++x) *own++ = row[Place(sides[1], x)];
  }
  fesetenv(&environment);
  if (fits) return {};
  return good ? "The task prepares an image of this size to another one than that of its label maps."
              : "The task prepares images of this size by other steps than resize and central_crop, or not at all.";
}
}  // namespace piggyback
