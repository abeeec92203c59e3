#!/usr/bin/perl
# compare.pl PERL_CONFIGURATION CONVERTED: calls the callbacks of the one and applies the substitutions of the other to the
# same data, both by Perl, and prints every difference. The last line counts what was compared.
use strict;
use warnings;

package GearmanProxy;
our($queues, $statusqueue, $logfile, $debug) = ({});

package main;
# callbacks put together what they did not find
local $SIG{__WARN__} = sub { };
my($perl, $converted) = @ARGV;
{
    package GearmanProxy;
    no strict;
    no warnings;
    do "./$perl";
    die($@) if $@;
}

my(%steps, $forward);
open(my $lines, '<', $converted) or die("$converted: $!");
while(<$lines>) {
    chomp;
    if(/^(\S+?) = /) { ($forward = $1) =~ s/:4730//; $steps{$forward} = { data_callback => [], uniq_callback => [] } }
    elsif(/^    (data_callback|uniq_callback) = (.*)$/) { push @{ $steps{$forward}{$1} }, $2 }
}

# The same data each time: texts like Mod-Gearman's, then anything.
my @data = ('', "\n", 'a', "a\n", "a\n\n", "type=host\n", "a \t\n", "\xfc\xc3\xbc K\xf6ln K\xc3\xb6ln\n", "a#bc# \@home me\@example.org \$USER1\$ \\n \\");
for my $type (qw(host service)) {
    for my $host ('web01', 'db7', 'WEB-Two', 'central.example.org', 'x y') {
        for my $queue ('', "result_queue=check_results\n", "result_queue=a=b\r\nresult_queue=c\n") {
            my $service = $type eq 'service' ? "service_description=disk /var  full\n" : '';
            push @data, "type=$type\n${queue}target_queue=q1\nhost_name=$host\n${service}timeout=30\ncore_time=1.5\n\n\n",
                "host_name=$host\n${service}${queue}type=$type\n  output=OK - $host\t1", "$queue$service";
        }
    }
}
srand(7);
my @words = ('a', 'b', ' ', "\n", "\r", '=', 'host_name=', 'result_queue=', 'type=host', "type=service\n", 'web', '-', '_', "\xfc", 'central.example.org', '/', '{', '$', '@', 'A.B', "\t", "x\n", 'service_description=', 'c', 'd', 'o', 'e');
push @data, join('', map { $words[rand @words] } 0 .. rand 14) for 1 .. 400;

sub applied {
    my($text, @steps) = @_;
    my $matched = 0;
    local $_ = $text;
    for my $step (@steps) {
        (my $code = $step) =~ s/\$\{([A-Za-z_]\w*)\}/\$+{$1}/g;
        no warnings;
        my $count = eval("package Empty; $code");
        die("$step: $@") if $@;
        $matched ||= $count;
    }
    return ($_, $matched);
}

my($compared, $different) = (0, 0);
for my $name (sort keys %{$GearmanProxy::queues}) {
    my $steps = $steps{$name} or next;
    for my $data (@data) {
        my $copy = $data;
        my($want, $id) = do { no warnings; "x" =~ /x/; $GearmanProxy::queues->{$name}{data_callback}->($copy, {}, {}, {}) };
        my($have) = applied($data, @{ $steps->{data_callback} });
        my($unique, $matched) = applied($data, @{ $steps->{uniq_callback} });
        # no match, nothing, too long or with a NUL: the job keeps its own id, as without one in Perl
        $unique = '' if !$matched || length $unique > 63 || $unique =~ /\0/;
        $id = '' if !defined $id || length $id > 63 || (!$matched && $id eq $data);
        $compared++;
        next if $have eq $want && $unique eq $id;
        $different++;
        s/([^ -~])/sprintf('\x%02x', ord $1)/ge for $data, $want, $have, $id, $unique;
        print "$name: `$data` became `$have` ($unique), in Perl `$want` ($id)\n";
    }
}
print "$compared compared, $different different, ".scalar(keys %steps)." forwards\n";
exit($different ? 1 : 0);
