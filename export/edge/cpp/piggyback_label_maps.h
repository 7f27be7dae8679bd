// Label maps at the size of the image before it was prepared: docs/edge-format.md in C++17, without dependencies,
// exceptions, memory of its own or global state.
#pragma once

#include <stdint.h>

#include "piggyback_edge.h"

namespace piggyback {
// Gives a label map of Task::Labels the size that the image had before it was prepared by task.augmentation(): each
// pixel has the label of the place that its middle went to, and one that was cut off that of the nearest place. Writes
// [height, width] labels, in rows. Both sizes are those of the image. The memory must not overlap. Refuses a task that
// finds no labels, steps other than resize and central_crop, and an image of which they make another size than the map's.
Error AtOwnSize(const Task& task, const uint8_t* labels, uint32_t height, uint32_t width, uint8_t* own);
}  // namespace piggyback
