"""The way of a series after its arrival: jobs, deliveries, and what runs beside them."""
