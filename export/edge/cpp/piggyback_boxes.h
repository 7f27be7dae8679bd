// The choice among the boxes that a model says: docs/edge-format.md in C++17, without dependencies, exceptions or global
// state.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "piggyback_edge.h"

namespace piggyback {
// A box in pixels of the prepared image, whose first pixel goes from 0 to 1; the number of its class, and how sure the
// task is of it.
struct Box {
  float top, left, bottom, right;
  uint32_t label;
  float score;
};
constexpr size_t kMostBoxes = 100;

// Writes the boxes of an image, [kMostBoxes], the surest first, and how many there are: of two of a class that overlap
// the surer one. `scores` and `sides` are what the model of task.signature() returned under these names, [rows, columns,
// room] and [rows, columns, 4]; rows and columns are those of the tensors. Takes memory for five numbers of each place.
// Refuses what Task::CheckPoints does.
Error ChooseBoxes(const Task& task, Bytes model, const float* scores, const float* sides, uint32_t rows,
                  uint32_t columns, Box* boxes, size_t* count);
}  // namespace piggyback
