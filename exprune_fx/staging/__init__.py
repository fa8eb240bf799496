"""Writes the staged form of a site into a graph: partial sum, guard, ..., finish."""

from exprune_fx.staging.emitter import KEPT_KEY as KEPT_KEY
from exprune_fx.staging.emitter import ROLE_KEY as ROLE_KEY
from exprune_fx.staging.emitter import SITE_KEY as SITE_KEY
from exprune_fx.staging.emitter import STAGE_KEY as STAGE_KEY
from exprune_fx.staging.site import stage_site as stage_site
