// For the device only.
#pragma once
