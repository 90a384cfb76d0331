"""The Lua scripts of the meter; ``metering.redis_meter`` loads them by name."""
