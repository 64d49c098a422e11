// An object store in a folder of this machine or of a shared file system.
#pragma once

#include <memory>
#include <string>

#include "store/object_store.h"

namespace tessera {

// Keys are paths below `root`. Puts are atomic and durable when they return.
std::unique_ptr<ObjectStore> OpenFileStore(std::string root, const StoreOptions& options);

}  // namespace tessera
