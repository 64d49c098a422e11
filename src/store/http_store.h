// Objects behind a web server, read-only.
#pragma once

#include <memory>
#include <string>

#include "store/object_store.h"

namespace tessera {

// A user and password in the URL become basic authentication; its query is sent with every request
// (signed URLs). Neither is ever shown.
Result<std::unique_ptr<ObjectStore>> OpenHttpStore(const std::string& url,
                                                   const StoreOptions& options);

}  // namespace tessera
