// Numbers the beats of a stream, 0 to COUNT - 1 and from the beginning again. 2**CBITS >= COUNT.
module edgesdk_count #(
    parameter integer WIDTH = 8,
    parameter integer COUNT = 4,
    parameter integer CBITS = 2
) (
    input  wire             clk,
    input  wire             rst,
    input  wire             s_valid,
    output wire             s_ready,
    input  wire [WIDTH-1:0] s_data,
    output wire             m_valid,
    input  wire             m_ready,
    output wire [WIDTH-1:0] m_data,
    output wire             m_first,
    output wire             m_last,
    output wire [CBITS-1:0] m_number
);
    localparam integer LAST_COUNT = COUNT - 1;
    localparam [CBITS-1:0] LAST = LAST_COUNT[CBITS-1:0];

    reg [CBITS-1:0] number;

    assign m_valid = s_valid;
    assign s_ready = m_ready;
    assign m_data = s_data;
    assign m_first = number == {CBITS{1'b0}};
    assign m_last = number == LAST;
    assign m_number = number;

    always @(posedge clk) begin
        if (s_valid && m_ready) number <= m_last ? {CBITS{1'b0}} : number + 1'b1;
        if (rst) number <= {CBITS{1'b0}};
    end
endmodule
