"""The Lua scripts of the meter; ``metering.redis.meter`` loads them by name."""
